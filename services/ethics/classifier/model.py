"""Run the network: one ONNX file from verified bytes, on the calling thread, one text at a time.

A batch would be quantised together, so a text's scores would hang on its neighbours; alone they can be repeated.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from kala.errors import ConstitutionError, InternalError
from services.ethics.classifier.calibration import MODEL_FILE
from services.ethics.classifier.encoding import CLS, SEP, Encoded, batch_arrays

INPUTS: Final = ("input_ids", "attention_mask", "token_type_ids")
OUTPUT: Final = "columns"
# A sum fused into the layer norm takes a fifth longer than the two beside each other.
SLOWER_FUSIONS: Final = ["SkipLayerNormFusion"]
# onnxruntime's own log goes to stderr; only errors are worth a line there.
LOG_ERRORS: Final = 3


class Network:
    """The loaded network; `columns` may run on several threads at once."""

    def __init__(self, data: bytes, columns: int) -> None:
        try:
            self._session = ort.InferenceSession(
                data, _options(), providers=["CPUExecutionProvider"], disabled_optimizers=SLOWER_FUSIONS
            )
        except Exception as error:  # noqa: BLE001 - onnxruntime raises classes of its own that share no base
            problem = str(error).partition("\n")[0][:200]
            raise ConstitutionError(f"{MODEL_FILE}: onnxruntime cannot load it: {problem}") from None
        # The session keeps the bytes only to start over with other providers, of which there are none here.
        self._session._model_bytes = b""  # noqa: SLF001 - 23 MB, and no public way to let go of them
        inputs = tuple(item.name for item in self._session.get_inputs())
        outputs = tuple(item.name for item in self._session.get_outputs())
        if set(inputs) != set(INPUTS) or outputs != (OUTPUT,):
            raise ConstitutionError(
                f"{MODEL_FILE}: must take {', '.join(INPUTS)} and give {OUTPUT},"
                f" not {', '.join(inputs)} and {', '.join(outputs)}"
            )
        self._columns = columns
        self._warm_up()

    def columns(self, encoded: Encoded) -> NDArray[np.float32]:
        """The logits of one text; InternalError when they are not numbers."""
        arrays = batch_arrays([encoded], len(encoded.ids))
        (found,) = self._session.run([OUTPUT], dict(zip(INPUTS, arrays, strict=True)))
        row = np.asarray(found, np.float32)
        if row.shape != (1, self._columns) or not np.isfinite(row).all():
            raise InternalError("the classifier's answer makes no sense")
        return row.reshape(-1)

    def _warm_up(self) -> None:
        """Run it once, so that the first request is as fast as the next and a file of another kind stops the start."""
        blank = Encoded(np.array([CLS, SEP], np.int32), np.zeros(2, np.int8))
        try:
            self.columns(blank)
        except Exception as error:  # noqa: BLE001 - as above; whatever it is, this is not our network
            raise ConstitutionError(
                f"{MODEL_FILE}: does not answer {self._columns} columns: {str(error).partition(chr(10))[0][:200]}"
            ) from None


def _options() -> ort.SessionOptions:
    options = ort.SessionOptions()
    # Requests run beside each other, not within each other; a spinning thread would take another request's core.
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    # Texts have hundreds of lengths; a plan of the memory for each would never be dropped.
    options.enable_mem_pattern = False
    options.log_severity_level = LOG_ERRORS
    return options
