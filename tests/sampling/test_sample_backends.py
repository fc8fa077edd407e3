"""Sampling elsewhere than in this process: the stage, its hash, its record, and what a recipe may say."""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from allo.errors import UserError
from allo.files.artifacts import read_jsonl
from allo.files.records import Completion, Message
from allo.models.load import load_tokenizer
from allo.models.tokenization import cut_left, prompt_ids, prompt_text
from allo.pipeline import run_all
from allo.plan import plan
from allo.plan.memory import StagePlan
from allo.plan.table import explanation
from allo.sampling.replies import seed_of
from model_server import STARTING_MODEL, ModelServer, model_server
from server import KEY, without_proxy
from tiny_run import IN_BATCHES, LAB, tiny

PROMPTS, N = 16, 4  # of the tiny run
POSITIONS = 128  # of the laboratory's model
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}Copy:{% endif %}"
)


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    without_proxy(monkeypatch, "OPENAI_API_KEY")


@pytest.fixture
def served() -> Iterator[ModelServer]:
    with model_server() as server:
        yield server


def at(*urls: str, **more: Any) -> list[str]:
    """Sampled at servers."""
    servers = {"base_urls": list(urls), **more}
    return [
        "sample.backend=openai",
        f"sample.model={STARTING_MODEL}",
        f"sample.servers={json.dumps(servers)}",
    ]


def sampled(out: Path, *overrides: str) -> Path:
    """The tiny run up to sampling, of problems in a file, without fine-tuning."""
    out.mkdir(exist_ok=True)
    file = out / "problems.jsonl"
    file.write_text(
        "".join(
            json.dumps({"id": f"p{n}", "prompt": problem(n), "answer": str(n + 5)}) + "\n"
            for n in range(PROMPTS)
        )
    )
    rows = json.dumps({"file": str(file)})
    own = ["sft=null", f"data={rows}", f"evaluate.sets={{test: {rows}}}", "evaluate.kl=null"]
    return run_all(tiny(out, *own, *overrides), until="sample").path


def problem(number: int) -> str:
    return f"Problem: Tom has {number} pens. He buys 5 pens. How many pens now?\n"


def entry(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "manifest.json").read_text())["stages"]["sample"]
    return found


def test_a_run_samples_at_servers_and_records_how_fast(served: ModelServer, tmp_path: Path) -> None:
    run = sampled(tmp_path, *at(served.url))
    completions = read_jsonl(run / "01-completions.jsonl", Completion)
    assert [(each.prompt_id, each.index) for each in completions] == [
        (f"p{number}", index) for number in range(PROMPTS) for index in range(N)
    ]
    assert sorted(asked["prompt"] for asked in served.asked) == sorted(map(problem, range(PROMPTS)))
    counts = entry(run)["counts"]
    assert counts["completions"] == counts["finished"] == PROMPTS * N and counts["requests"] == PROMPTS
    assert counts["tokens"] > 0 and counts["completions_per_second"] > 0 and counts["tokens_per_second"] > 0
    assert not list(run.glob("*.part"))


@pytest.mark.invariant("Other servers are the same run; the key is nowhere in it.")
def test_other_servers_are_the_same_run_and_another_model_or_setting_is_not(
    served: ModelServer, tmp_path: Path
) -> None:
    first = entry(sampled(tmp_path, *at(served.url)))
    asked = len(served.requests)
    with model_server() as moved:
        sampled(tmp_path, *at(moved.url, "http://127.0.0.1:1/v1", concurrency=2, timeout=9.0))
        assert not moved.requests and len(served.requests) == asked
        assert "127.0.0.1" not in json.dumps(entry(tmp_path / "tiny")["config"])
        moved.model = "retrained"
        again = entry(sampled(tmp_path, *at(moved.url), "sample.model=retrained"))
        assert again["hash"] != first["hash"] and len(moved.asked) == PROMPTS
        for change in ("sample.temperature=0.5", "sample.extra_body={top_k: 0}"):
            sampled(tmp_path, *at(moved.url), "sample.model=retrained", change)
        assert len(moved.asked) == 3 * PROMPTS


@pytest.mark.invariant("Other servers are the same run; the key is nowhere in it.")
def test_the_key_is_nowhere_in_the_run(
    served: ModelServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    served.key = KEY
    served.choose = lambda asked: [(f"{KEY} {index}", "stop") for index in range(asked["n"])]
    run = sampled(tmp_path, *at(served.url))
    written = [path.read_bytes() for path in run.rglob("*") if path.is_file()]
    assert len(written) > 3 and not [content for content in written if KEY.encode() in content]
    assert not [text for text in capfd.readouterr() if KEY in text]


def test_without_a_server_the_folder_to_serve_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        sampled(tmp_path, *at("http://127.0.0.1:1/v1"))
    assert f"vllm serve {LAB} --served-model-name {STARTING_MODEL}" in str(error.value)
    assert "docs/sampling.md" in str(error.value)


def test_the_fine_tuned_model_is_the_one_to_serve(tmp_path: Path) -> None:
    steps = "{per_device_train_batch_size: 8, gradient_accumulation_steps: 1}"
    sft = f"sft={{sources: [{{task: planted_flaws, limit: 8}}], training: {steps}}}"
    with pytest.raises(UserError, match="no server answers") as error:
        sampled(tmp_path, sft, *at("http://127.0.0.1:1/v1"))
    folder = (tmp_path / "tiny" / "00-sft" / "model").resolve()
    assert f"Serve {folder} " in str(error.value) and (folder / "model.safetensors").exists()


# Settings in a recipe.


@pytest.mark.parametrize(
    "servers",
    [
        {"base_urls": ["http://host/v1", "https://me:aSecret@host/v1"]},
        {"base_urls": ["https://host/v1?key=aSecret"]},
        {"base_urls": ["sk-aSecret@host/v1"]},
        {"base_urls": ["http://me:aSecret@[bad/v1"]},
        {"base_urls": ["http://host/v1"], "key_variable": "sk-aSecret"},
    ],
)
def test_a_secret_in_a_recipe_is_refused_without_showing_it(servers: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"sample\.servers\.(base_urls|key_variable): ") as error:
        tiny(tmp_path, *at("http://host/v1"), f"sample.servers={json.dumps(servers)}")
    assert "aSecret" not in str(error.value)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["sample.backend=openai"], "give model and servers"),
        (["sample.model=policy"], "backend hf asks no server: remove model"),
        (["sample.backend=vllm", "sample.extra_body={top_k: 0}"], "backend vllm .*remove extra_body"),
        ([*at("http://host/v1"), "sample.extra_body={seed: 3}"], "says seed by itself"),
        ([*at("http://host/v1"), "sample.servers.base_urls=[]"], "at least 1 item"),
        ([*at("http://host/v1"), "sample.servers.base_urls=[localhost]"], "give an address such as"),
        ([*at("http://host/v1"), "rounds=2", "evaluate.start=true"], "models that no server has yet"),
    ],
)
def test_what_cannot_work_is_refused_by_the_recipe(overrides: list[str], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        tiny(tmp_path, *overrides)


@pytest.mark.parametrize(
    ("backend", "why"),
    [("openai", "whose servers have a memory of their own"), ("vllm", "for which vLLM takes nine tenths")],
)
def test_a_plan_leaves_out_what_is_sampled_elsewhere(
    backend: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("allo.plan.plan_stage", lambda recipe, name: StagePlan(name, "", {}))
    planned = plan(
        tiny(tmp_path, *(at("http://host/v1") if backend == "openai" else ["sample.backend=vllm"]))
    )
    assert [stage.stage for stage in planned.stages] == [
        "sft",
        "locate",
        "score",
        "forget",
        "improve",
        "evaluate",
    ]
    assert f"Not planned: sample, {why}" in explanation(planned, gpus=1)


# The parts of a prompt that servers are shown.


def chat_tokenizer() -> Any:
    tokenizer = load_tokenizer(str(LAB))
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


@pytest.mark.parametrize("length", [60, 12, 5])
@pytest.mark.parametrize(
    "prompt",
    [
        "Problem: Tom has 7 pens. He buys 5 pens. How many pens now?\n",
        [Message(role="user", content="Problem: Tom has 7 pens. He buys 5 pens. How many pens now?")],
    ],
    ids=["text", "messages"],
)
def test_a_server_with_our_tokenizer_makes_our_ids_of_the_text(
    prompt: str | list[Message], length: int
) -> None:
    tokenizer = chat_tokenizer()
    shown = prompt_text(tokenizer, prompt, length)
    assert not shown.startswith(tokenizer.bos_token)
    assert tokenizer(shown).input_ids == cut_left(tokenizer, prompt_ids(tokenizer, prompt), length)


@pytest.fixture
def chat_model(tmp_path: Path) -> Path:
    """The laboratory's model with a chat template."""
    folder = tmp_path / "chat"
    folder.mkdir()
    for file in LAB.iterdir():
        if file.is_file():
            (folder / file.name).write_bytes(file.read_bytes())
    chat_tokenizer().save_pretrained(folder)
    return folder


def test_messages_go_to_chat_or_as_our_template_renders_them(
    served: ModelServer, tmp_path: Path, chat_model: Path
) -> None:
    own = [f"model={chat_model}", "chat=true"]
    sampled(tmp_path, *at(served.url), *own)
    assert {asked["path"] for asked in served.asked} == {"/v1/chat/completions"}
    messages = served.asked[0]["messages"]
    served.asked.clear()
    sampled(tmp_path, *at(served.url), *own, "sample.api=completions")
    assert {asked["path"] for asked in served.asked} == {"/v1/completions"}
    assert f"{messages[0]['content']}\nCopy:" in {asked["prompt"] for asked in served.asked}


def test_prompts_are_cut_where_they_are_texts_and_refused_where_they_are_messages(
    served: ModelServer, tmp_path: Path, chat_model: Path
) -> None:
    room = 12
    own = [f"model={chat_model}", f"max_length={room}", "sample.max_new_tokens=8"]
    counts = entry(sampled(tmp_path, *at(served.url), *own))["counts"]
    tokenizer = load_tokenizer(str(LAB))
    assert counts["prompts_cut"] == PROMPTS == len(served.asked)
    assert {len(tokenizer(asked["prompt"]).input_ids) for asked in served.asked} == {room}
    assert all(problem(0).endswith(asked["prompt"][-9:]) for asked in served.asked)
    with pytest.raises(
        UserError, match=r"p0: its messages have .* tokens, and 12 leave room.*sample.api to completions"
    ):
        sampled(tmp_path, *at(served.url), *own, "chat=true")


# vLLM, by a module with its call forms: the package itself needs another machine.


@dataclass
class CompletionOutput:
    index: int
    text: str
    token_ids: list[int]
    finish_reason: str | None


@dataclass
class RequestOutput:
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]


@dataclass
class SamplingParams:
    """As far as it is used; vLLM refuses unknown names, too."""

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int | None = 16
    stop: list[str] | None = None
    seed: int | None = None
    stop_token_ids: list[int] | None = None
    skip_special_tokens: bool = True


class LLM:
    made: list["LLM"] = []

    def __init__(
        self, model: str, *, dtype: str, max_model_len: int, trust_remote_code: bool, seed: int | None
    ) -> None:
        self.model, self.dtype, self.max_model_len = model, dtype, max_model_len
        self.asked: list[tuple[list[int], SamplingParams]] = []
        self.made.append(self)

    def generate(
        self, prompts: list[dict[str, list[int]]], sampling_params: list[SamplingParams], *, use_tqdm: bool
    ) -> list[RequestOutput]:
        found = []
        for prompt, params in zip(prompts, sampling_params, strict=True):
            ids = prompt["prompt_token_ids"]
            assert params.seed is not None and params.max_tokens is not None
            self.asked.append((ids, params))
            outputs = [
                CompletionOutput(
                    k, f"drawn with {params.seed + k}", [4, 5, 2], "length" if k == 1 else "stop"
                )
                for k in range(params.n)
            ]
            found.append(RequestOutput(ids, outputs[::-1]))
        return found


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> list[LLM]:
    module = ModuleType("vllm")
    module.LLM, module.SamplingParams = LLM, SamplingParams  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", module)
    LLM.made.clear()
    return LLM.made


def test_vllm_is_given_our_ids_and_every_setting(vllm: list[LLM], tmp_path: Path) -> None:
    run = sampled(tmp_path, "sample.backend=vllm", "sample.stop=[Q]", "sample.top_p=0.9")
    (engine,) = vllm
    room = POSITIONS - 40
    assert (engine.model, engine.dtype, engine.max_model_len) == (str(LAB), "float32", room + 40)
    assert len(engine.asked) == PROMPTS
    tokenizer = load_tokenizer(str(LAB))
    completions = read_jsonl(run / "01-completions.jsonl", Completion)
    ids = list(dict.fromkeys(completion.prompt_id for completion in completions))
    for id, (tokens, params) in zip(ids, engine.asked, strict=True):
        assert tokens[0] == tokenizer.bos_token_id and len(tokens) > 5
        seed = seed_of(0, id, 0)
        assert params == SamplingParams(
            N, 1.0, 0.9, 40, ["Q"], seed, stop_token_ids=[], skip_special_tokens=False
        )
        own = [completion for completion in completions if completion.prompt_id == id]
        assert [completion.text for completion in own] == [f"drawn with {seed + k}" for k in range(N)]
        assert [completion.finished for completion in own] == [k != 1 for k in range(N)]
    assert {completion.num_tokens for completion in completions} == {3}
    assert [completion.token_ids for completion in completions] == [[4, 5, 2]] * len(completions)


def test_a_killed_vllm_run_goes_on_after_its_last_whole_batch(
    vllm: list[LLM], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = ["sample.backend=vllm", *IN_BATCHES]
    whole = (sampled(tmp_path / "whole", *overrides) / "01-completions.jsonl").read_bytes()
    num_asked = len(vllm[0].asked)
    generate = LLM.generate

    def killed(self: LLM, *arguments: Any, **more: Any) -> list[RequestOutput]:
        if self.asked:
            raise KeyboardInterrupt
        return generate(self, *arguments, **more)

    monkeypatch.setattr(LLM, "generate", killed)
    with pytest.raises(KeyboardInterrupt):
        sampled(tmp_path / "killed", *overrides)
    monkeypatch.setattr(LLM, "generate", generate)
    assert (sampled(tmp_path / "killed", *overrides) / "01-completions.jsonl").read_bytes() == whole
    assert len(vllm[1].asked) + len(vllm[2].asked) == num_asked and vllm[1].asked


def test_a_model_that_vllm_does_not_load_is_named(
    vllm: list[LLM], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: LLM, **settings: Any) -> None:
        raise ValueError("Model architectures ['X'] are not supported")

    monkeypatch.setattr(LLM, "__init__", refuse)
    with pytest.raises(
        UserError, match=f"{LAB}: vLLM does not load the model .*not supported.*backend to hf"
    ):
        sampled(tmp_path, "sample.backend=vllm")


@pytest.mark.parametrize(("backend", "package"), [("vllm", "vllm"), ("openai", "openai")])
def test_a_missing_package_is_named_before_the_first_stage(
    backend: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    overrides = at("http://host/v1") if backend == "openai" else ["sample.backend=vllm"]
    with pytest.raises(UserError, match=rf"needs the `{package}` package; install"):
        sampled(tmp_path, *overrides)
    assert not (tmp_path / "tiny" / "00-sft").exists()
