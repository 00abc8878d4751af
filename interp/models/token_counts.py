"""Prompts as token ids before a model is loaded: the tokenizer's file and the chat template, without torch.

`interp.models.tokens` is what a run uses, with roles; this reads the same two files through `tokenizers` and Jinja in a
second, so that a plan counts the tokens that will run.

    source = ModelSource("smollm2-safe")
    files = model_files(source)
    counter = TokenCounter.read(files, source)
    counter.ids(["How do I bake bread?"])
"""

import datetime
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from interp.models.gguf import convert_gguf
from interp.models.sources import PLAIN, ModelSource, read_template
from interp.storage.typed_json import read_json

_MARK = "interp planned instruction"
"""Stands for an instruction where the template around it is measured."""


def model_files(source: ModelSource) -> Path:
    """The folder with a model's configuration and tokenizer; its weights need not be there.

    A GGUF file is converted first, once, as every load does. Of a Hub id only these files are fetched.

    Raises:
        ValueError: they are not here and cannot be had.
    """
    place = source.place
    if place.suffix == ".gguf":
        source.check()
        return convert_gguf(place)
    if place.is_dir():
        return place
    if source.source.count("/") != 1:
        source.check()
    from huggingface_hub import snapshot_download

    from interp.models.hub import hub_options

    options = hub_options(source.source, revision=source.revision_asked())
    try:
        return Path(
            snapshot_download(
                source.source,
                allow_patterns=["config.json", "tokenizer*", "chat_template*", "special_tokens_map.json"],
                **options,
            )
        )
    except Exception as error:  # of the Hub's client and its HTTP library
        reason = str(error).strip().splitlines()[0][:160]
        raise ValueError(
            f"config.json and tokenizer of {source.source} are not on this machine and could not be had from the Hub "
            f"({reason}); give a folder that holds them"
        ) from error


@dataclass(frozen=True, eq=False, kw_only=True)
class TokenCounter:
    """A tokenizer with its chat template."""

    tokenizer: Any
    """The `tokenizers.Tokenizer`."""
    template: str
    """The chat template, in Jinja."""
    special: Mapping[str, str]
    """What the template may name: `bos_token`, `eos_token`, ..."""
    date: str | None = None
    """Date that the template shows, ISO 8601; today when None."""

    @classmethod
    def read(cls, folder: Path, source: ModelSource) -> "TokenCounter":
        """The tokenizer of a folder, with the template that the source asks for.

        Raises:
            ValueError: no `tokenizer.json`, a damaged one, or no chat template.
        """
        from tokenizers import Tokenizer

        path = folder / "tokenizer.json"
        if not path.is_file():
            raise ValueError(
                f"{folder} has no tokenizer.json, so its tokens cannot be counted; save the tokenizer there"
            )
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the Rust reader raises plain exceptions
            raise ValueError(f"cannot read {path}: {str(error).splitlines()[0]:.120}") from error
        settings = folder / "tokenizer_config.json"
        about: dict[str, Any] = {}
        if settings.is_file():
            about = read_json(settings, dict[str, Any], remedy="save the tokenizer again")
        template = _template(folder, about, source)
        special = {
            name: value["content"] if isinstance(value, dict) else value
            for name, value in about.items()
            if name.endswith("_token") and isinstance(value, (str, dict))
        }
        return cls(tokenizer=tokenizer, template=template, special=special, date=source.date)

    def ids(self, texts: Sequence[str], *, system: str = "") -> list[tuple[int, ...]]:
        """Token ids of instructions, each in the chat template.

        Args:
            system: system message of all of them; an empty one leaves it to the template.

        Raises:
            ValueError: a template that cannot be rendered.
        """
        known = self._known.setdefault(system, {})
        new = [text for text in dict.fromkeys(texts) if text not in known]
        if new:
            rendered = [self._rendered(text, system) for text in new]
            encoded = self.tokenizer.encode_batch(rendered, add_special_tokens=False)
            known.update((text, tuple(one.ids)) for text, one in zip(new, encoded, strict=True))
        return [known[text] for text in texts]

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Numbers of tokens of texts outside the template."""
        encoded = self.tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [len(one.ids) for one in encoded]

    def n_post(self) -> int:
        """Tokens of the template after the instruction."""
        after = self._rendered(_MARK).partition(_MARK)[2]
        return len(self.tokenizer.encode(after, add_special_tokens=False).ids)

    @cached_property
    def _known(self) -> dict[str, dict[str, tuple[int, ...]]]:
        """Ids by system message and text: the stages of a plan ask for the same prompts."""
        return {}

    @cached_property
    def _compiled(self) -> Any:
        return _environment(self.date).from_string(self.template)

    def _rendered(self, text: str, system: str = "") -> str:
        before = [{"role": "system", "content": system}] if system else []
        messages = [*before, {"role": "user", "content": text}]
        try:
            return self._compiled.render(messages=messages, add_generation_prompt=True, **self.special)
        except Exception as error:  # a template is anybody's program
            reason = f"{str(error).splitlines()[0]:.120}" if str(error) else type(error).__name__
            raise ValueError(f"the chat template cannot be rendered: {reason}") from error


def _template(folder: Path, about: Mapping[str, Any], source: ModelSource) -> str:
    if source.chat_template == PLAIN:
        return "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"
    if source.chat_template is not None:
        return read_template(source.chat_template) or ""
    path, given = folder / "chat_template.jinja", about.get("chat_template")
    if path.is_file():
        return path.read_text(encoding="utf-8")
    if isinstance(given, list):  # several, by name
        given = next((one.get("template") for one in given if one.get("name") == "default"), None)
    if not isinstance(given, str):
        raise ValueError(f"the tokenizer in {folder.name} has no chat template; give --chat-template")
    return given


def _environment(date: str | None) -> Any:
    """What chat templates may use, as transformers gives it to them; nothing of Python can be reached."""
    from jinja2 import TemplateError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.nodes import Node
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` marks what an assistant wrote; here it changes nothing."""

        tags = {"generation"}  # noqa: RUF012 (as jinja2 declares it)

        def parse(self, parser: Any) -> Node | list[Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def refuse(message: str) -> None:
        raise TemplateError(message)

    day = datetime.date.today() if date is None else datetime.date.fromisoformat(date)
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    environment.globals.update(raise_exception=refuse, strftime_now=day.strftime)
    return environment
