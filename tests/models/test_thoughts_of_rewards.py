"""A reward model reads what a completion says behind the policy's thoughts, also those that its template opens."""

from pathlib import Path

import pytest
from test_templates import laboratory

import tiny
import tiny_run
from allo.files.artifacts import RunFolder
from allo.files.records import Message, Prompt
from allo.models.load import load_tokenizer
from allo.models.reward_model import judged_ids
from allo.stages import sft
from allo.stages.reward import load_reader
from tokenizers_of_kinds import CHATML

ASKED = [Message(role="user", content="2 + 3?")]
OPENED = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
BY_SETTING = OPENED.replace("<think>\n", "{% if plan %}<think>\n{% endif %}")


@pytest.mark.parametrize(
    ("template", "settings", "text", "said"),
    [
        (OPENED, None, "Maybe 5? Let me", ""),
        (OPENED, None, "Maybe 9?</think>5", "5"),
        (CHATML, None, "Maybe 5? Let me", "Maybe 5? Let me"),
        (CHATML, None, "<reflection>9?</reflection>5", "5"),
        (CHATML, None, "<plan>9?</plan>5", "5"),
        (BY_SETTING, {"chat_template_kwargs": {"plan": True}}, "Maybe 5? Let me", ""),
        (BY_SETTING, None, "Maybe 5? Let me", "Maybe 5? Let me"),
    ],
)
def test_a_reward_model_is_shown_what_is_said(
    template: str, settings: dict | None, text: str, said: str, tmp_path: Path
) -> None:
    model = laboratory(tmp_path / "model", template)
    tokenizer = load_tokenizer(model)
    tokenizer.response_template = {"fields": {"thinking": {"open": "<plan>", "close": "</plan>"}}}
    tokenizer.init_kwargs["response_template"] = tokenizer.response_template
    tokenizer.save_pretrained(model)
    judge = str(tiny.reward_model(tmp_path / "judge"))
    recipe = tiny_run.tiny(tmp_path, f"model={model}", "sft=null", f"judge.reward_model={judge}")
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    sft.run(recipe, run)
    prompt = Prompt("p", ASKED, template=settings)
    reader = load_reader(recipe, judge, run)
    (found,) = reader.rows([(prompt, text)]).values()
    assert found == judged_ids(reader.model.tokenizer, ASKED, said, max_length=1000)
