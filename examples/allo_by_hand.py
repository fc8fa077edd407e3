"""ALLO by hand: sample, judge, pair, find the tokens, find the weights, forget, improve, evaluate.

The laboratory's model was taught to solve two-step problems, half of the time wrongly. On a CPU this takes seconds.
Shapes: B rows, P prompt tokens, L answer tokens, V words.
"""

import random
from pathlib import Path

import torch
from torch.nn.functional import logsigmoid
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoTokenizer

import allo
from allo import ParamMask, SelectedWeights

LAB = Path(allo.__file__).parent / "lab"
STORY = "Problem: Tom has {} pens. He buys {} pens. He sells {} pens. How many pens now?\n"
DENSITY, KEEP, BETA = 0.2, 0.5, 0.5  # share of all weights; share of a wrong answer's tokens; DPO's
random.seed(0), torch.manual_seed(0)
tokenizer, model = AutoTokenizer.from_pretrained(LAB), AutoModelForCausalLM.from_pretrained(LAB).eval()


def sample(problems):
    """Return (prompt [P], answer [L], is it right?) for 8 sampled answers to each problem, as token ids."""
    texts = [STORY.format(*numbers) for numbers in problems]
    prompts = tokenizer(texts, return_tensors="pt").input_ids.repeat_interleave(8, 0)  # all of one length
    rows = model.generate(prompts, do_sample=True, top_k=0, max_new_tokens=30)[:, prompts.shape[1] :]
    answers = [row[row != tokenizer.pad_token_id] for row in rows]
    ends = [f"The answer is {n + a - b}.<eos>" for n, a, b in problems]
    right = [tokenizer.decode(answer).endswith(ends[i // 8]) for i, answer in enumerate(answers)]
    return list(zip(prompts, answers, right, strict=True))


def logps(prompts, answers):
    """Return log pi(y_t | x, y_<t) of the answers' tokens: [B, L], 0 where an answer is padded."""
    targets = pad_sequence(answers, batch_first=True, padding_value=-1)  # [B, L]
    logits = model(torch.cat([torch.stack(prompts), targets.clamp(min=0)], dim=1)).logits  # [B, P + L, V]
    logits = logits[:, len(prompts[0]) - 1 : -1]  # [B, L, V]: each predicts the token that follows
    return logits.log_softmax(-1).gather(-1, targets.clamp(min=0)[..., None])[..., 0] * (targets >= 0)


def dpo(selected, prompts, right, wrong, places, *, keep=1.0):
    """DPO on pairs, with the share `keep` of the wrong answers' tokens: those of lowest log-ratio."""
    with selected.swapped("ref"), torch.no_grad():
        before = [logps(prompts, side) for side in (right, wrong)]
    gained = logps(prompts, right) - before[0]  # log-ratios [B, L]
    lost = logps(prompts, wrong) - before[1]
    lengths = torch.tensor([len(answer) for answer in wrong])[:, None]  # [B, 1]
    ranked = lost.detach().masked_fill(torch.arange(lost.shape[1]) >= lengths, torch.inf).sort(-1).values
    kept = lost <= ranked.gather(-1, (keep * lengths).ceil().long() - 1)  # [B, L]
    return -logsigmoid(BETA * (gained.sum(-1) - (lost * kept).sum(-1))).mean()


def unlikelihood(selected, prompts, right, wrong, places):
    """-log(1 - pi) of each answer's wrong token: it takes away what the model believes, without a reference."""
    believed = logps(prompts, wrong)[range(len(wrong)), places].exp()  # [B]
    return -torch.log1p(-believed.clamp(max=1 - 1e-6)).mean()


def train(selected, loss, learning_rate):
    """Train the selected weights, once over the pairs."""
    optimizer = torch.optim.AdamW(selected.parameters(), lr=learning_rate)
    for i in range(0, len(pairs), 16):
        loss(selected, *zip(*pairs[i : i + 16], strict=True)).backward()
        optimizer.step(), selected.write_back(), optimizer.zero_grad()


# Sample and judge. Tests are other problems.
problems = random.sample([(n, a, b) for n in range(12, 40) for a in range(2, 10) for b in range(2, 10)], 140)
drawn, before = sample(problems[:100]), sample(problems[100:])

# Pair each wrong answer with the nearest right one. Its wrong token is the first that differs.
pairs = []  # prompt [P], right answer [L], wrong answer [L], place of the wrong token
for group in (drawn[i : i + 8] for i in range(0, len(drawn), 8)):
    rights = [answer for _, answer, is_right in group if is_right]
    for prompt, wrong, _ in (one for one in group if rights and not one[2]):
        shared = [int((one[: len(wrong)] == wrong[: len(one)]).cumprod(0).sum()) for one in rights]
        pairs.append((prompt, rights[shared.index(max(shared))], wrong, min(max(shared), len(wrong) - 1)))

# Find the weights: those that a short DPO run of all weights changes most. The model then goes back to its start.
start = {name: weights.clone() for name, weights in model.state_dict().items()}
shapes = {name: weights.shape for name, weights in model.named_parameters()}
every = SelectedWeights(model, ParamMask.full(shapes), slots=("ref",))
train(every, dpo, learning_rate=1e-4)
change = {name: (new - every.slot("ref")[name]).abs() for name, new in every.masters().items()}
least = torch.cat(list(change.values())).quantile(1 - DENSITY)
mask = ParamMask({name: (by > least).nonzero()[:, 0].int() for name, by in change.items()}, shapes=shapes)
every.release(), model.load_state_dict(start)

# Forget the wrong tokens, then improve beside the model that forgot. Only the mask's weights move.
selected = SelectedWeights(model, mask)
train(selected, unlikelihood, learning_rate=1e-3)
selected.capture("ref")
train(selected, lambda *batch: dpo(*batch, keep=KEEP), learning_rate=1e-4)

for name, answers in (("before", before), ("after", sample(problems[100:]))):
    print(f"accuracy {name}: {sum(right for *_, right in answers) / len(answers):.2f}")
