"""`allo winrate judge` and `allo winrate export`; their code is imported when they are called."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from allo.console import say
from allo.errors import UserError
from allo.files.artifacts import RunFolder, held, write_atomic
from allo.sampling.endpoint import Endpoint, check_endpoint

if TYPE_CHECKING:
    from allo.winrate.outputs import Kind, Outputs

app = typer.Typer(
    no_args_is_help=True, help="Win rates: which answers a judge prefers, one model's or a baseline's."
)

Model = Annotated[
    str, typer.Option("--of", help="The run's model: aligned, start, or another that was evaluated.")
]
Set = Annotated[str | None, typer.Option("--set", help="One evaluation set of the run. Default: all.")]
Answers = Annotated[
    Literal["greedy", "sampled"], typer.Option(help="Greedy answers, or the first sample of each prompt.")
]


@app.command("judge")
def judge_answers(
    places: Annotated[
        list[Path],
        typer.Argument(metavar="RUN | FILE...", help="Folders of finished runs, or files of answers."),
    ],
    against: Annotated[
        str,
        typer.Option(
            help="The baseline: another model of the run (start), the set's own replies (solution), or a file."
        ),
    ],
    base_url: Annotated[str, typer.Option(help="The judge's address, such as http://localhost:8000/v1.")],
    model: Annotated[str, typer.Option(help="The judge's name at the server.")],
    of: Model = "aligned",
    set: Set = None,
    answers: Answers = "greedy",
    key_variable: Annotated[
        str, typer.Option(help="The environment variable that holds the key.")
    ] = "OPENAI_API_KEY",
    concurrency: Annotated[int, typer.Option(min=1, help="Requests at a time.")] = 8,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds of silence.")] = 120,
    max_retries: Annotated[int, typer.Option(min=0, help="Further attempts at a request.")] = 5,
    max_tokens: Annotated[
        int, typer.Option(min=1, max=2**24, help="Tokens of a reply; one that is cut short is not read.")
    ] = 1024,
    temperature: Annotated[float | None, typer.Option(min=0, help="Default: the server's.")] = None,
    price_in: Annotated[
        float | None, typer.Option(min=0, help="Price of a million prompt tokens, to count costs.")
    ] = None,
    price_out: Annotated[
        float | None, typer.Option(min=0, help="Price of a million completion tokens.")
    ] = None,
) -> None:
    """Ask a judge which of two answers is better, in both orders, and write the win rate; resumable."""
    endpoint = Endpoint(base_url, model, key_variable, concurrency, timeout, max_retries, price_in, price_out)
    check_endpoint(endpoint)
    from allo.winrate.figures import show
    from allo.winrate.judging import JudgeSettings, judge

    settings = JudgeSettings(max_tokens=max_tokens, temperature=temperature)
    pairs = [pair for place in places for pair in _pairs(place, against, of=of, set=set, answers=answers)]
    records = []
    for folder, own, other in pairs:
        with held(folder):
            records.append(judge(own, other, endpoint, settings, folder=folder))
    show(records)


@app.command("export")
def export_answers(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished run.")],
    format: Annotated[
        Literal["alpaca_eval", "arena_hard", "arena_hard_v2"],
        typer.Option(
            help="AlpacaEval's model_outputs.json, or a model_answer file for Arena-Hard's tool before or since 2.0."
        ),
    ],
    set: Annotated[str, typer.Option("--set", help="An evaluation set of the run.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where the answers go.")],
    of: Model = "aligned",
    answers: Answers = "greedy",
    name: Annotated[
        str | None, typer.Option(help="The model's name in the file. Default: the run's and the model's.")
    ] = None,
    questions: Annotated[
        Path | None,
        typer.Option(help="That project's own file of questions, for their exact texts and ids."),
    ] = None,
) -> None:
    """Write a model's answers in the format of AlpacaEval or Arena-Hard, for their tools to judge."""
    from allo.winrate import formats
    from allo.winrate.outputs import of_run

    found = of_run(run, model=of, set=set, kind=answers)
    generator = name or f"{found.origin['run']}-{found.name}"
    rows = formats.as_asked(found) if questions is None else formats.matched(found, questions)
    if format == "alpaca_eval":
        content = formats.alpaca_eval(rows, generator=generator)
    else:
        answered = RunFolder(run).evaluation.stat().st_mtime
        write = formats.arena_hard if format == "arena_hard" else formats.arena_hard_v2
        content = write(rows, generator=generator, answered=answered)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, content)
    say(f"{out}: {len(rows)} answers of {generator}")


def _pairs(
    place: Path, against: str, *, of: str, set: str | None, answers: "Kind"
) -> list[tuple[Path, "Outputs", "Outputs"]]:
    """Return for each set of a run, or for a file: the result's folder, the answers, and the baseline's answers."""
    from allo.winrate.outputs import SOLUTION, models_of_run, of_file, of_run, sets_of_run, solutions

    if not place.exists():
        raise UserError(f"{place}: there is no such run or file; check the path.")
    if not place.is_dir():
        if not Path(against).is_file():
            raise UserError(f"--against {against}: there is no such file; with {place}, give a file.")
        return [(place.parent, of_file(place), of_file(Path(against)))]
    found = []
    for name in sets_of_run(place) if set is None else [set]:
        own = of_run(place, model=of, set=name, kind=answers)
        if against == SOLUTION:
            other = solutions(place, set=name)
        elif against == of:
            raise UserError(f"--against {against}: that is the model itself; name another.")
        elif against in models_of_run(place):
            other = of_run(place, model=against, set=name, kind=answers)
        elif Path(against).is_file():
            other = of_file(Path(against))
        else:
            raise UserError(
                f"--against {against}: neither a file nor a model of {place}; it has "
                f"{', '.join(models_of_run(place))}, and each set its {SOLUTION!r}."
            )
        found.append((place, own, other))
    return found
