"""`allo rewriter data` and `allo rewriter train`; their code is imported when they are called."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from allo.console import say
from allo.sampling.endpoint import Endpoint

app = typer.Typer(
    no_args_is_help=True, help="Rewriters: models that show which tokens of a wrong completion are wrong."
)

Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key, such as training.learning_rate=1e-4."),
]


Identity = Annotated[
    float, typer.Option(min=0, max=0.9, help="Share of rows that are right completions, left as they are.")
]
MaxDistance = Annotated[
    float | None,
    typer.Option(
        min=0, max=1, help="Largest share of edited tokens. Default: 0.5 for self and teacher, otherwise 1."
    ),
]
Generations = Annotated[
    int,
    typer.Option(
        min=1, max=10_000, help="self: repairs to try per completion; the nearest right one is kept."
    ),
]
Temperature = Annotated[
    float | None, typer.Option(min=0, help="self: default the recipe's. teacher: default the server's.")
]
BaseUrl = Annotated[str | None, typer.Option(help="teacher: the address, such as http://localhost:8000/v1.")]
TeacherName = Annotated[str | None, typer.Option(help="teacher: the model's name at the server.")]
KeyVariable = Annotated[str, typer.Option(help="teacher: the environment variable that holds the key.")]
Concurrency = Annotated[int, typer.Option(min=1, help="teacher: requests at a time.")]
Timeout = Annotated[float, typer.Option(min=0.1, help="teacher: seconds of silence.")]
Retries = Annotated[int, typer.Option(min=0, help="teacher: further attempts at a request.")]
MaxTokens = Annotated[
    int | None,
    typer.Option(
        min=1, max=2**24, help="teacher: tokens of a reply. Default: the recipe's sample.max_new_tokens."
    ),
]
PriceIn = Annotated[
    float | None, typer.Option(min=0, help="teacher: price of a million prompt tokens, to count costs.")
]
PriceOut = Annotated[float | None, typer.Option(min=0, help="teacher: price of a million completion tokens.")]


@app.command("data")
def make_data(
    place: Annotated[Path, typer.Argument(metavar="RUN | RECIPE", help="A run's folder, or its recipe.")],
    source: Annotated[
        Literal["gold", "nearest", "self", "teacher"],
        typer.Option(
            help="The task's solution, the nearest right sample, the policy's own repair, or a teacher's."
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="FILE.jsonl", help="Where the rows go.")],
    overrides: Overrides = None,
    identity: Identity = 0.2,
    max_distance: MaxDistance = None,
    seed: Annotated[int, typer.Option(help="Seed for drawing right completions.")] = 0,
    num_generations: Generations = 1,
    temperature: Temperature = None,
    base_url: BaseUrl = None,
    model: TeacherName = None,
    key_variable: KeyVariable = "OPENAI_API_KEY",
    concurrency: Concurrency = 8,
    timeout: Timeout = 120,
    max_retries: Retries = 5,
    max_tokens: MaxTokens = None,
    price_in: PriceIn = None,
    price_out: PriceOut = None,
) -> None:
    """Write rows (problem, right solution, wrong completion) -> minimal rewrite from a run's judged samples."""
    endpoint = None
    if source == "teacher":
        if base_url is None or model is None:
            raise typer.BadParameter("--source teacher needs --base-url and --model")
        endpoint = Endpoint(
            base_url, model, key_variable, concurrency, timeout, max_retries, price_in, price_out
        )
    from allo.rewriter.cases import open_run
    from allo.rewriter.data import DataSettings, make_data, record_of

    settings = DataSettings(source, identity, max_distance, seed, num_generations, temperature, max_tokens)
    out.parent.mkdir(parents=True, exist_ok=True)
    counts = make_data(open_run(place, overrides), settings, out, endpoint=endpoint)
    say(f"{out}: {', '.join(f'{key} {value}' for key, value in counts.items())}; more in {record_of(out)}")


@app.command("train")
def train(
    data: Annotated[Path, typer.Argument(metavar="FILE.jsonl", help="What `allo rewriter data` wrote.")],
    model: Annotated[str, typer.Option(help="A causal language model with the policy's tokenizer.")],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where the rewriter goes.")],
    overrides: Overrides = None,
) -> None:
    """Fine-tune a small model on rewrites. Keys are a recipe's training block, max_length, dtype, device and seed."""
    from allo.rewriter.train import read_settings, train_rewriter

    counts = train_rewriter(data, model, out, read_settings(overrides or []))
    say(f"{out}: {', '.join(f'{key} {value}' for key, value in counts.items())}")
