"""The names of ``tokinterp`` itself, each loaded when it is first touched, from where this file says.

So ``import tokinterp``, ``tokinterp --help`` and whatever is said of tokenizers do not wait for torch.  A name that is
added here is also named in ``tokinterp.__all__``, which a test compares.
"""

from .models import Model, ModelInfo, Modules, load_model, load_tokenizer, wrap
from .models.untrained import untrained
from .results.cite import cite
from .results.contrasts import contrast
from .results.dataset import check
from .results.long_table import table
from .results.report import report
from .results.stores import read, write
from .results.summary import concat_models, summary
from .run import edits
from .run.batch import Batch
from .run.conditions import Condition, measure_conditions
from .run.engine import measure
from .run.measurement import Field, Measurement
from .run.nulls import measure_nulls
from .run.shares import measure_on_cluster
from .run.sites import Site, resid
from .run.states import states
from .run.stream import capture, stream
from .text import Prompts, Spans, bundled_questions, bundled_spans, bundled_texts

__all__ = [
    "Batch", "Condition", "Field", "Measurement", "Model", "ModelInfo", "Modules", "Prompts", "Site", "Spans",
    "bundled_questions", "bundled_spans", "bundled_texts", "capture", "check", "cite", "concat_models", "contrast",
    "edits", "load_model", "load_tokenizer", "measure", "measure_conditions", "measure_nulls", "measure_on_cluster",
    "read", "report", "resid", "states", "stream", "summary", "table", "untrained", "wrap", "write",
]  # fmt: skip
