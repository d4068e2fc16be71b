"""A configuration of mergekit: the text read and checked in full, before any model is looked at."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fusion_bench.errors import ConfigError, unknown
from fusion_bench.mergekit.document import Document, Model, Parameters, Slice, Source
from fusion_bench.mergekit.methods import KINDS, LACKING, WITHOUT_EFFECT, MergeMethod, supported
from fusion_bench.mergekit.values import Value, read_value

_KEYS = (
    "merge_method", "base_model", "models", "slices", "parameters", "dtype", "out_dtype", "tokenizer_source",
    "tokenizer", "name",
)  # fmt: skip
_LEVELS = {"top": "the configuration", "slice": "a slice", "model": "a model", "source": "a source"}

# Keys of mergekit that are not taken, with the way out.
_REFUSED = {
    "modules": "merging the stacks of a model in different ways is not supported. Give whole models under `models`.",
    "chat_template": "is not supported: the template comes with the tokenizer. Edit chat_template.jinja of the result.",
}
_REFUSED_TOKENIZER = {
    "tokens": "giving tokens embeddings of their own is not supported. Leave it out.",
    "pad_to_multiple_of": "padding the embeddings is not supported. Use model.resize_token_embeddings on the result.",
}


def read(text: str, where: str) -> Document:
    """The configuration in `text`; `where` is what it is called in messages. One ConfigError with all faults."""
    import yaml

    try:
        documents = [each for each in yaml.safe_load_all(text) if each is not None]
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: not readable as YAML: {' '.join(str(error).split())}") from error
    if len(documents) != 1 or not isinstance(documents[0], Mapping):
        what = "a mapping with merge_method and models or slices"
        found = f"{len(documents)} documents" if len(documents) != 1 else f"a {type(documents[0]).__name__}"
        raise ConfigError(f"{where}: holds {found}; expected one, {what}.")
    reader = _Reader(where)
    document = reader.document(documents[0], text)
    if reader.faults or document is None:
        raise ConfigError("\n".join(dict.fromkeys(reader.faults)))
    return document


@dataclass
class _Reader:
    """Reads parts of a configuration and collects what is wrong with them."""

    where: str
    faults: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)

    def document(self, given: Mapping[str, Any], text: str) -> Document | None:
        self._keys(given, _KEYS, "", _REFUSED)
        name = self._method(given.get("merge_method"))
        if name is None:
            return None
        kind = KINDS[name]
        base = self._model(given["base_model"], "base_model") if given.get("base_model") is not None else None
        sliced = given.get("slices") is not None
        if sliced == (given.get("models") is not None):
            both = "models and slices exclude each other" if sliced else "models (or slices) is missing"
            self._fault(f"{both}: whole models, or layers of them.")
            return None
        top = self._parameters(given.get("parameters"), "parameters", "top", name, kind)
        if sliced:
            slices = self._slices(given["slices"], name, kind)
        else:
            sources = self._sources(given["models"], "models", "model", name, kind)
            slices = (Slice(sources, {}, "models"),) if sources else ()
        dtypes = [self._dtype(given.get(key), key) for key in ("dtype", "out_dtype")]
        tokenizer = self._tokenizer(given, base, slices)
        if self.faults or not slices:
            return None
        if not sliced:
            slices = (self._with_base(slices[0], base, kind),)
        self._inputs(slices, base, name, kind)
        return Document(
            name, base, slices, sliced, top, dtypes[0], dtypes[1], tokenizer, tuple(self.unused), text
        )  # fmt: skip

    def _fault(self, text: str) -> None:
        self.faults.append(f"{self.where}: {text}")

    def _keys(
        self, given: Mapping[Any, Any], known: Iterable[str], at: str, refused: Mapping[str, str] | None = None
    ) -> None:
        refused = refused or {}
        for key in given:
            place = f"{at}.{key}" if at else str(key)
            if key in refused and given[key] is not None:
                self._fault(f"{place}: {refused[key]}")
            elif key not in known and key not in refused:
                self._fault(unknown("key", place, [f"{at}.{each}" if at else each for each in known]))

    def _method(self, given: Any) -> str | None:
        known = supported()
        name = None if given is None else str(given)
        if name is None:
            self._fault(f"merge_method is missing. Accepted: {', '.join(known)}.")
        elif name in LACKING:
            self._fault(f"merge_method: {name} is not supported. {LACKING[name]} Accepted: {', '.join(known)}.")
        elif name not in known:
            self._fault(unknown("merge_method", name, known))
        else:
            return name
        return None

    def _model(self, given: Any, at: str) -> Model | None:
        entry = given
        if isinstance(given, Mapping):
            if isinstance(given.get("model"), Mapping):
                self._keys(given, ("model",), at, {"lora": _NO_LORA, "override_architecture": _NO_ARCHITECTURE})
                entry = given["model"]
            if isinstance(entry, Mapping):
                self._keys(entry, ("path", "revision"), at)
                entry = entry.get("path")
        if not isinstance(entry, str) or not entry.strip():
            self._fault(f"{at}: expected a path or the name of a model on the Hub, given {_shown(given)}.")
            return None
        if "+" in entry:
            self._fault(f"{at}={entry}: {_NO_LORA}")
            return None
        revision = _revision(given)
        return Model(entry, None if revision is None else str(revision))

    def _slices(self, given: Any, name: str, kind: MergeMethod) -> tuple[Slice, ...]:
        if not isinstance(given, list) or not given:
            self._fault("slices: expected a list of slices, each with sources.")
            return ()
        found = []
        for i, entry in enumerate(given):
            at = f"slices[{i}]"
            if not isinstance(entry, Mapping):
                self._fault(f"{at}: expected a mapping with sources, given {_shown(entry)}.")
                continue
            self._keys(entry, ("sources", "parameters"), at, {"base_model": _ONE_BASE})
            parameters = self._parameters(entry.get("parameters"), f"{at}.parameters", "slice", name, kind)
            sources = self._sources(entry.get("sources"), f"{at}.sources", "source", name, kind)
            counts = {layers[1] - layers[0] for layers in (source.layers for source in sources) if layers}
            if len(counts) > 1:
                self._fault(f"{at}: sources with different numbers of layers: {', '.join(map(str, sorted(counts)))}.")
            found.append(Slice(sources, parameters, at))
        return tuple(found)

    def _sources(self, given: Any, at: str, level: str, name: str, kind: MergeMethod) -> tuple[Source, ...]:
        if not isinstance(given, list) or not given:
            self._fault(f"{at}: expected a list with at least one entry, as in [{{model: PATH}}].")
            return ()
        found: list[Source] = []
        for i, entry in enumerate(given):
            each = f"{at}[{i}]"
            if not isinstance(entry, Mapping) or "model" not in entry:
                self._fault(f"{each}: expected a mapping with model, given {_shown(entry)}.")
                continue
            self._keys(entry, ("model", *(["layer_range"] if level == "source" else []), "parameters"), each)
            model = self._model(entry["model"], f"{each}.model")
            parameters = self._parameters(entry.get("parameters"), f"{each}.parameters", level, name, kind)
            layers = self._layers(entry.get("layer_range"), f"{each}.layer_range") if level == "source" else None
            if model is None:
                continue
            if model in [source.model for source in found]:
                self._fault(f"{each}.model={model}: stands there already. Name each model once, with its full weight.")
            found.append(Source(model, layers, parameters, each))
        return tuple(found)

    def _layers(self, given: Any, at: str) -> tuple[int, int] | None:
        whole = isinstance(given, list) and [type(end) for end in given] == [int, int]
        if not whole or not 0 <= given[0] < given[1]:
            self._fault(f"{at}={_shown(given)}: expected the first layer and the one after the last, as in [0, 24].")
            return None
        return given[0], given[1]

    def _parameters(self, given: Any, at: str, level: str, name: str, kind: MergeMethod) -> Parameters:
        found: dict[str, Value] = {}
        if given is None:
            return found
        if not isinstance(given, Mapping):
            self._fault(f"{at}: expected a mapping from parameter to value, given {_shown(given)}.")
            return found
        for key, value in given.items():
            parameter = kind.parameters.get(str(key))
            if key in WITHOUT_EFFECT:
                continue
            if key in kind.unused:
                self.unused.append(f"{at}.{key}: {name} does not look at it")
            elif parameter is None:
                words = sorted({*kind.parameters, *WITHOUT_EFFECT})
                self._fault(unknown(f"parameter of {name}", str(key), words, at))
            elif not parameter.each and level in ("model", "source"):
                self._fault(
                    f"{at}.{key}: all inputs share it, so it stands in the parameters of the configuration or of a "
                    f"slice; mergekit ignores it at {_LEVELS[level]}. Move it there."
                )
            else:
                try:
                    read = read_value(value, parameter.kind, f"{at}.{key}")
                except ConfigError as fault:
                    self.faults += [f"{self.where}: {line}" for line in str(fault).splitlines()]
                    continue
                if read is not None:
                    found[str(key)] = read
        return found

    def _dtype(self, given: Any, key: str) -> str | None:
        from fusion_bench.checkpoint.dtypes import parse_dtype

        if given is None:
            return None
        try:
            dtype = parse_dtype(str(given))
        except ConfigError:
            dtype = ""
        if dtype not in _DTYPES:
            self._fault(unknown("dtype", str(given), _DTYPES.values(), key))
            return None
        return dtype

    def _tokenizer(self, given: Mapping[str, Any], base: Model | None, slices: tuple[Slice, ...]) -> Model | None:
        source, at = given.get("tokenizer_source"), "tokenizer_source"
        part = given.get("tokenizer")
        if part is not None:
            if source is not None:
                self._fault("tokenizer and tokenizer_source exclude each other. Leave tokenizer out.")
            if not isinstance(part, Mapping):
                self._fault(f"tokenizer: expected a mapping with source, given {_shown(part)}.")
                return None
            self._keys(part, ("source",), "tokenizer", _REFUSED_TOKENIZER)
            source, at = part.get("source"), "tokenizer.source"
        if source is None:
            return None
        if source == "union":
            self._fault(
                f"{at}=union: adding up vocabularies is not supported. Give base or a model, or align the vocabularies "
                "first: resize the embeddings and save the models with one tokenizer."
            )
            return None
        if source == "base":
            donors = [base] if base is not None else [s.model for part in slices for s in part.sources]
            return donors[0] if donors else None
        return self._model(source, at)

    def _with_base(self, part: Slice, base: Model | None, kind: MergeMethod) -> Slice:
        """Under `models`, a base that is not listed is one more input, the first."""
        if base is None or base in [source.model for source in part.sources]:
            return part
        return Slice((Source(base, None, {}, "base_model"), *part.sources), part.parameters, part.where)

    def _inputs(self, slices: tuple[Slice, ...], base: Model | None, name: str, kind: MergeMethod) -> None:
        """Whether each slice has the base that the method needs, and as many models as it takes."""
        if kind.base == "required" and base is None:
            self._fault(f"merge_method: {name} works relative to a base. Add base_model: PATH.")
            return
        fewest, most = kind.models
        for part in slices:
            based = kind.base != "ordinary" and base is not None
            listed = base in [source.model for source in part.sources]
            if kind.base == "required" and not listed:
                self._fault(f"{part.where}: {name} needs the base {base} among its sources, with layers of its own.")
                continue
            count = len(part.sources) - (based and listed)
            if count < fewest or (most is not None and count > most):
                wanted = f"{fewest if fewest == most else f'at least {fewest}'} model{'s' * (fewest != 1)}"
                beside = " beside the base" if based and listed else ""
                also = ""
                if kind.base == "ordinary" and any(source.where == "base_model" for source in part.sources):
                    also = " with base_model, which is an ordinary input of this method"
                self._fault(f"{part.where}: {name} takes {wanted}{beside}, given {count}{also}.")
            if based and listed:
                source = next(source for source in part.sources if source.model == base)
                self.unused += [f"{source.where}.parameters.{key}: the base takes none" for key in source.parameters]


_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_NO_LORA = (
    "a model plus an adapter is not supported. Give the adapter's folder as the model: it is folded into the base that "
    "it names."
)
_NO_ARCHITECTURE = "is not supported: tensors are taken as they are named. Leave it out."
_ONE_BASE = "a base of a slice's own is not supported. Give base_model for the whole configuration."


def _revision(given: Any) -> Any:
    inner = given.get("model", given) if isinstance(given, Mapping) else None
    return inner.get("revision") if isinstance(inner, Mapping) else None


def _shown(value: Any) -> str:
    text = "null" if value is None else str(value)
    return text if len(text) <= 60 else text[:57] + "…"
