"""lm-eval, unchanged: a generative task through chat, and likelihoods through completions that are the model's own."""

import json

import pytest
import torch

from mull.chat import Chat
from mull.models import hf
from mull.models.attention import causal
from mull.models.nano import shipped_folder
from tests.clients.problems import N, graded, problems, written
from tests.clients.running import run

CLIENT = "lm-eval"
pytestmark = pytest.mark.timeout(4000)


def evaluated(client, server, folder, model, task, *options, **arguments):
    """(results, samples) of a task, which is told as its YAML file says it: JSON is YAML."""
    folder.mkdir(exist_ok=True)
    data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(folder / "data.jsonl")}}}
    (folder / "mine.yaml").write_text(json.dumps({"task": "mine", "test_split": "test", **data, **task}))
    address = f"{server.url}/v1/" + ("chat/completions" if "chat" in model else "completions")
    given = {"model": "nano", "base_url": address, "num_concurrent": 4, "max_retries": 1, **arguments}
    command = [str(client), "-m", "lm_eval", "run", "--model", model, "--tasks", "mine", "--include_path", str(folder)]
    command += ["--model_args", ",".join(f"{key}={value}" for key, value in given.items())]
    command += ["--output_path", str(folder / "out"), "--log_samples", *options]
    run(command, folder / "work", {"OPENAI_API_KEY": server.key})
    (results,) = (folder / "out").rglob("results_*.json")
    (samples,) = (folder / "out").rglob("samples_mine_*.jsonl")
    lines = [json.loads(line) for line in samples.read_text().splitlines()]
    return json.loads(results.read_text())["results"]["mine"], sorted(lines, key=lambda line: line["doc_id"])


def test_a_task_is_run_to_a_score(client, server, tmp_path, say):
    written(tmp_path / "data.jsonl")
    task = {
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": [], "max_gen_toks": 4096, "temperature": 0, "reasoning_effort": "high"},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }
    scores, samples = evaluated(client, server, tmp_path, "local-chat-completions", task, "--apply_chat_template")
    answers = {sample["doc"]["id"]: sample["resps"][0][0] for sample in samples}
    say(f"lm-eval, chat: exact match {scores['exact_match,none']:g} of {N} problems")
    assert scores["exact_match,none"] == graded(answers) > 0


@pytest.fixture(scope="module")
def nano():
    return hf.load(shipped_folder()), Chat.load(shipped_folder())


def likelihood(nano, text: str, answer: str) -> tuple[float, bool]:
    """(log-probability of the answer behind the text, whether it is the likeliest), off the model itself."""
    model, chat = nano
    given, tokens = chat.encode_written(text), chat.encode_written(text + answer)
    with torch.inference_mode():
        hidden = model(torch.tensor([tokens]), torch.arange(len(tokens))[None], causal())
        logprobs = model.logits(hidden)[0].log_softmax(-1)
    of = range(len(given), len(tokens))
    assert of
    own = sum(logprobs[at - 1, tokens[at]].item() for at in of)
    return own, all(logprobs[at - 1].argmax().item() == tokens[at] for at in of)


@pytest.mark.parametrize("tokenized", [True, False], ids=["tokens", "text"])
def test_likelihoods_are_the_models_own(client, server, tmp_path, nano, say, tokenized):
    """Which of four answers is the likeliest, behind a right thought."""
    task, found = problems()
    lines = []
    for at, problem in enumerate(found):
        solved = task.solve(problem)
        right = int(problem.reference.answer)
        choices = [str(value) for value in (right + 1, right + 10, right - 1, right + 7)]
        choices[at % 4] = str(right)
        text = f"<|user|>{problem.question.text}<|end|><|assistant|><think>{solved.thought}</think>"
        lines.append({"text": text, "choices": choices, "label": at % 4})
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    choice = {
        "output_type": "multiple_choice",
        "doc_to_text": "{{text}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "label",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    how = {"tokenizer": shipped_folder(), "tokenizer_backend": "huggingface", "tokenized_requests": tokenized}
    scores, samples = evaluated(client, server, tmp_path, "local-completions", choice, max_length=1024, **how)
    best = []
    for line, sample in zip(lines, samples, strict=True):
        assert sample["doc"]["text"] == line["text"]
        told = [(float(value), greedy in (True, "True")) for ((value, greedy),) in sample["resps"]]
        want = [likelihood(nano, line["text"], answer) for answer in line["choices"]]
        assert [value for value, _ in told] == pytest.approx([value for value, _ in want], abs=1e-3)
        assert [greedy for _, greedy in told] == [greedy for _, greedy in want]
        best.append(max(range(4), key=lambda i: want[i][0]))
    right = sum(at == line["label"] for at, line in zip(best, lines, strict=True)) / len(lines)
    say(f"lm-eval, likelihoods: accuracy {scores['acc,none']:g} of {N} problems")
    assert scores["acc,none"] == pytest.approx(right)
    assert right > 0.5  # the thought says the answer


def test_likelihoods_of_whole_texts(client, server, tmp_path, nano):
    """Bits of text after nothing but the token that lm-eval puts before it."""
    texts = [f"a={i};b=a+{i + 1};b?" for i in range(4)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    whole = {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "bits_per_byte", "aggregation": "bits_per_byte", "higher_is_better": False}],
    }
    how = {"tokenizer": shipped_folder(), "tokenizer_backend": "huggingface"}
    _, samples = evaluated(client, server, tmp_path, "local-completions", whole, max_length=1024, **how)
    told = [float(sample["resps"][0][0]) for sample in samples]
    assert told == pytest.approx([likelihood(nano, "<|end|>", text)[0] for text in texts], abs=1e-3)
