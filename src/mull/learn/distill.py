"""A small model from a large one: students, what a teacher's traces teach, and the KL on the student's own samples.

Off-policy: cross-entropy on the teacher's verified chains (`verified`). The student learns what to do where the teacher
goes, and is lost where only it would have gone.

On-policy (GKD, Agarwal et al. 2306.13649; Thinking Machines' "On-Policy Distillation", 2025): the student samples, and
at every token t of its own chains learns towards the teacher. The loss is the reverse KL at each visited state,

    KL_t = sum over v of p_S(v | y_<t) [log p_S(v | y_<t) - log p_T(v | y_<t)]

with the states held fixed: like GKD, nothing flows through which states were visited. Two forms of its gradient:

    exact    the sum above, over the whole vocabulary: no variance from the choice of the token, but both models' logits
    sampled  the policy gradient with advantage log p_T(y_t) - log p_S(y_t) of the sampled token alone (Thinking
             Machines' form, discount 0): an ordinary batch for any policy loss, and log-probabilities of one token are
             all that is needed of a teacher

For y_t drawn from p_S they are equal in expectation, since sum over v of grad p_S(v) is 0. The reverse KL seeks modes:
a small student concentrates on ways of the teacher that it can afford, where the forward KL (`forward`, for comparison)
would spread over all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mull.chat import Chat
from mull.errors import UserError
from mull.learn.forward import batch_logprobs
from mull.learn.length import shortest_right
from mull.learn.logprobs import CPU_CHUNK, GPU_CHUNK
from mull.learn.pairs import paths_of, sft_sample
from mull.models import hf
from mull.models.attention import causal
from mull.models.config import ModelConfig
from mull.models.transformer import Transformer
from mull.types import Batch, Question, Sample, Trace

Keep = Literal["shortest", "right", "all"]
Direction = Literal["reverse", "forward"]


# ------------------------------------------------------------------------------------------------ students


def parameters(model: Transformer) -> int:
    """All of them; what is tied counts once."""
    return sum(p.numel() for p in model.parameters())


def smaller(teacher: ModelConfig, layers: int, width: int) -> ModelConfig:
    """The teacher's shape with so many layers of that width: as many heads, narrower ones, the same ratio of the MLP.

    UserError for less than a layer, and for a width that leaves a head less than 4.
    """
    head = round(teacher.head_dim * width / teacher.hidden_size / 2) * 2  # rotations turn pairs
    if layers < 1 or head < 4:
        raise UserError(
            f"a student of {layers} layers of width {width} is too small for {teacher.num_heads} heads: ask for one "
            "layer or more, and a larger width"
        )
    inner = max(8, round(teacher.intermediate_size * width / teacher.hidden_size / 8) * 8)
    windows = _evenly(teacher.sliding_window, layers)
    return replace(
        teacher,
        num_layers=layers,
        hidden_size=width,
        intermediate_size=inner,
        head_dim=head,
        sliding_window=windows,
    )


def of_layers(teacher: Transformer, layers: int) -> Transformer:
    """A copy of the teacher with `layers` of its layers, evenly spread, the first and the last among them."""
    c = teacher.config
    if not 1 <= layers <= c.num_layers:
        raise UserError(f"the teacher has {c.num_layers} layers: a student cannot take {layers} of them")
    student = hf.init(
        replace(c, num_layers=layers, sliding_window=_evenly(c.sliding_window, layers)),
        0,
        teacher.dtype,
        teacher.device,
    )
    place = {old: new for new, old in enumerate(_evenly(tuple(range(c.num_layers)), layers))}
    state = {}
    for name, tensor in teacher.state_dict().items():
        head, _, rest = name.partition(".")
        number, _, tail = rest.partition(".")
        if head != "layers":
            state[name] = tensor
        elif int(number) in place:
            state[f"layers.{place[int(number)]}.{tail}"] = tensor
    student.load_state_dict(state)
    return student


def _evenly(items: tuple, n: int) -> tuple:
    """`n` of the items, evenly spread; of one the first. Repeats some where there are fewer."""
    if not items:
        return ()
    return tuple(items[round(i * (len(items) - 1) / (n - 1)) if n > 1 else 0] for i in range(n))


def refuse_other_tokens(teacher: Chat, student: Chat, sizes: tuple[int, int]) -> None:
    """UserError unless both models read and write the same tokens in the same way; `sizes`: of their vocabularies."""
    same = teacher.speaks_like(student) and sizes[0] == sizes[1]
    if not same or teacher.prompt("1+1?") != student.prompt("1+1?"):
        raise UserError(
            f"{student.name} has another tokenizer or chat template than the teacher {teacher.name}: distillation "
            "works token by token, so take a student of the same family"
        )


# ------------------------------------------------------------------------------------------------ off-policy


def verified(
    traces: Sequence[Trace], keep: Keep = "shortest", asked: Callable[[Question, int], Sequence[int]] | None = None
) -> list[Sample]:
    """A graded teacher's chains as demonstrations: the shortest right one of each question, its different right ones
    (as RFT, Yuan et al. 2308.01825), or all that ended, right or wrong (the ablation). Forced tokens are context; cut
    chains never teach.

    Shortest: a small student pays for every token, and slips in every line. All: as often as the teacher wrote them,
    since right chains repeat more than wrong ones, and without its repetitions they are not what it writes.

    `asked(question, tokens)`: the prompt that a chain of so many tokens is learnt behind, instead of its own. One that
    asks for that length teaches what such a wish means (hindsight, as in upside-down RL, Schmidhuber 1912.02875).
    """
    if keep == "shortest":
        chosen = shortest_right(traces)
    else:
        paths = [(trace.question.id, path) for trace in traces for path in paths_of(trace)]
        chosen = [(name, path) for name, path in paths if not path.cut and (path.correct or keep == "all")]
        if keep == "right":
            chosen = list({(name, path.side.tokens): (name, path) for name, path in chosen}.values())
    groups = {name: i for i, name in enumerate(dict.fromkeys(name for name, _ in chosen))}
    questions = {trace.question.id: trace.question for trace in traces}
    samples = [
        sft_sample(
            tuple(asked(questions[name], len(path.side.tokens))) if asked else path.prompt, path, group=groups[name]
        )
        for name, path in chosen
    ]
    return [sample for sample in samples if sample is not None]


# ------------------------------------------------------------------------------------------------ on-policy


def kl(student_NV: Tensor, teacher_NV: Tensor, direction: Direction = "reverse") -> Tensor:
    """KL(student || teacher) of N pairs of logits in nats [N], or KL(teacher || student) for "forward".

    The gradient is for the student alone.
    """
    own_NV, other_NV = F.log_softmax(student_NV, -1), F.log_softmax(teacher_NV.detach(), -1)
    if direction == "reverse":
        return (own_NV.exp() * (own_NV - other_NV)).sum(-1)
    return (other_NV.exp() * (other_NV - own_NV)).sum(-1)


def chunked_kl(
    student_NE: Tensor,
    student_head_VE: Tensor,
    teacher_NF: Tensor,
    teacher_head_VF: Tensor,
    direction: Direction = "reverse",
    chunk: int = 0,
) -> Tensor:
    """The same from final hidden states (of different widths) and heads, `chunk` tokens at a time, in the forward and
    again in the backward pass: no [N, V] tensor ever exists. 0: as many as stay in a cache."""
    room = CPU_CHUNK if student_NE.device.type == "cpu" else GPU_CHUNK
    rows = chunk or max(1, room // len(student_head_VE))

    def part(own_nE: Tensor, head_VE: Tensor, other_nF: Tensor) -> Tensor:
        return kl(_logits(own_nE, head_VE), _logits(other_nF, teacher_head_VF), direction)

    parts = [
        checkpoint(part, own_nE, student_head_VE, other_nF, use_reentrant=False)
        for own_nE, other_nF in zip(student_NE.split(rows), teacher_NF.split(rows), strict=True)
    ]
    return torch.cat(parts) if len(student_NE) else student_NE.new_zeros(0)  # type: ignore[arg-type]


def _logits(hidden_NE: Tensor, head_VE: Tensor) -> Tensor:
    wide = torch.promote_types(hidden_NE.dtype, head_VE.dtype)
    with torch.autocast(hidden_NE.device.type, enabled=False):
        logits_NV = F.linear(hidden_NE.to(wide), head_VE.to(wide))
    return logits_NV.to(torch.promote_types(wide, torch.float32))


def exact_loss(
    student: Transformer, teacher: Transformer, batch: Batch, direction: Direction = "reverse"
) -> tuple[Tensor, dict[str, Tensor]]:
    """The KL at every token of the mask, averaged over those of the whole optimiser step; and its sum, detached.

    The batch is of the student's own samples at temperature 1 with full support: ValueError otherwise.
    """
    if batch.kept_BTK is not None or bool((batch.temperature_B != 1).any()):
        raise ValueError("the student must sample from itself: temperature 1 and full support")
    B, T = batch.tokens_BT.shape
    positions_BT = torch.arange(T, device=batch.tokens_BT.device).expand(B, T)

    def states(model: Transformer) -> Tensor:
        return model(batch.tokens_BT, positions_BT, causal(model.config.sliding_window))[batch.mask_BT]

    with torch.no_grad():
        teacher_NF = states(teacher)
    head_VF = teacher.head_weight_VE.detach()
    kl_N = chunked_kl(states(student), student.head_weight_VE, teacher_NF, head_VF, direction)
    total = kl_N.sum()
    return total / batch.denominator, {"kl": total.detach(), "tokens": batch.mask_BT.sum()}


def with_teacher(batch: Batch, teacher: Transformer) -> Batch:
    """The batch with the advantages of the sampled form, log p_T(y_t) - log p_S(y_t), p_S being the sampler's; any
    policy loss takes it from there. Minus their mean over the mask is the KL of the chains, estimated."""
    with torch.no_grad():
        teacher_BT, _ = batch_logprobs(teacher, batch)
    gap_BT = torch.where(batch.mask_BT, teacher_BT - batch.logprobs_BT, 0.0)
    return replace(batch, advantages_BT=gap_BT, ref_logprobs_BT=teacher_BT)
