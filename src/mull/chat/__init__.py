"""Messages to tokens and back: the one place that knows chat templates, thought tags and end tokens.

Needs `tokenizers` and `jinja2` alone. Templates render as `transformers` renders them, with two differences, both
deliberate. Control tokens that are typed inside a message stay ordinary text. And the prompt always ends where the
thought begins (`think=True`), or after an empty one (`think=False`), whether the template knows of thinking or not.
"""

from mull.chat.chat import Chat
from mull.chat.decode import StreamDecoder
from mull.chat.template import Messages

__all__ = ["Chat", "Messages", "StreamDecoder"]
