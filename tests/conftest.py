"""Shared fixtures: devices, models and their runs.  Nothing here needs more than the package."""

import os
import signal
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing in the tests may need the network
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # also in processes that tests start: each core has a worker

import pytest
import torch

import tokinterp as ti

torch.set_num_threads(1)
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests are a background job of a shell
ROOT = Path(__file__).resolve().parents[1]
CORE_ONLY = os.environ.get("TOKINTERP_CORE_ONLY") == "1"
if CORE_ONLY:  # make test-core: the built wheel, and nothing of the checkout but its tests
    assert "site-packages" in str(ti.__file__), f"TOKINTERP_CORE_ONLY=1 tests an installed package, not {ti.__file__}"


needs_extras = pytest.mark.skipif(CORE_ONLY, reason="TOKINTERP_CORE_ONLY=1: optional libraries are not tested")


def pytest_report_header(config):
    return ["TOKINTERP_CORE_ONLY=1: transformer_lens, nnsight and distributed are NOT tested"] if CORE_ONLY else []


def pytest_generate_tests(metafunc):
    """Run every test that takes a ``device`` on the CPU, and on a GPU wherever there is one."""
    if "device" in metafunc.fixturenames:
        devices = ["cpu"]
        if torch.cuda.is_available():
            devices.append(pytest.param("cuda", marks=pytest.mark.gpu))
        metafunc.parametrize("device", devices)


@pytest.fixture(scope="session")
def bundled() -> ti.Model:
    """The trained model in the package."""
    return ti.load_model(device="cpu")


@pytest.fixture
def extras():
    """A missing optional library is a failure; TOKINTERP_CORE_ONLY=1 leaves them all out, and this says so."""
    if CORE_ONLY:
        pytest.skip("TOKINTERP_CORE_ONLY=1: optional libraries are not tested")


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory) -> Path:
    """A tiny random Llama with its tokenizer, as a local folder."""
    from tiny import byte_tokenizer, tiny_lm

    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    tiny_lm("llama", max_position_embeddings=256).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_run(tiny_folder):
    """All three measurements of five short texts by the tiny model."""
    model = ti.load_model(tiny_folder, device="cpu")
    texts = [t.text[: 110 + 9 * n] for n, t in enumerate(ti.bundled_texts("story")[:5])]
    asked = {
        "dimension": ti.geometry.IntrinsicDimension((2, 4, 8), k=6, small="nan"),
        "spectrum": ti.geometry.Spectrum(),
        "lens": ti.lens.LogitLens(top=2, variants=("normed", "raw")),
    }
    return ti.measure(model, ti.Prompts.from_texts(texts, model, max_tokens=256), asked, progress=False)


@pytest.fixture(scope="session")
def long_model() -> ti.Model:
    """A tiny random Llama with room for more text than the others have."""
    from tiny import byte_tokenizer, tiny_lm

    return ti.wrap(tiny_lm("llama", max_position_embeddings=256), byte_tokenizer(), id="long")


@pytest.fixture(scope="session")
def marked_texts(long_model) -> ti.Prompts:
    """Two texts with separators of several kinds."""
    texts = ["Go in, then out. The river, wide. And so on; to", "One, two; three. No more"]
    return ti.Prompts.from_texts(texts, long_model)


@pytest.fixture(autouse=True)
def close_figures():
    """Figures are closed behind every test; matplotlib's settings are as before."""
    if "matplotlib.pyplot" not in sys.modules:
        yield
        if "matplotlib.pyplot" in sys.modules:
            sys.modules["matplotlib.pyplot"].close("all")
        return
    import matplotlib as mpl

    def settings() -> dict:
        return {k: v for k, v in mpl.rcParams.items() if not k.startswith("backend")}  # a test may choose it by name

    before = settings()
    yield
    assert settings() == before, "a plot changed matplotlib's settings"
    sys.modules["matplotlib.pyplot"].close("all")
