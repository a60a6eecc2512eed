"""What stands aside of the training loop: the state of a training, and a step as a CUDA graph."""

import copy
import hashlib
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from mnlib.lab.files import written_whole

__all__ = ["CapturedStep", "Progress"]


class Progress:
    """The file that holds a training's state after its last whole epoch; None keeps nothing.

    A state belongs to a training with the same recipe, seed, shape of model and images.
    """

    def __init__(
        self,
        path: Path | None,
        images: Tensor,
        labels: Tensor,
        validation: tuple[Tensor | np.ndarray, Tensor | np.ndarray] | None,
        recipe: object,
        seed: int,
    ) -> None:
        self.path, self._validated = path, validation is not None
        self._digest = hashlib.sha256(repr((recipe, seed)).encode())
        for part in (images, labels, *(validation or ())) if path else ():
            self._digest.update(repr(part.shape).encode() + np.ascontiguousarray(part).data)

    def _identity(self, model: nn.Module) -> str:
        digest = self._digest.copy()
        shapes = [(key, tuple(value.shape)) for key, value in model.state_dict().items()]
        digest.update(repr(shapes).encode())
        return digest.hexdigest()

    def resume(self, model: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, list[float]]:
        """Bring model and optimiser to the kept state, if any; return the curves up to there.

        Raises:
            ValueError: the file is damaged, or of another training.

        """
        history: dict[str, list[float]] = {"loss": [], "losses": [], "seconds": []}
        if self._validated:
            history["accuracy"] = []
        if self.path is None or not self.path.is_file():
            return history
        device = next(model.parameters()).device
        try:
            saved = torch.load(self.path, map_location=device, weights_only=True)
            identity = saved["identity"]
        except Exception as error:  # whatever a damaged archive makes of PyTorch's reader
            why = str(error).partition("\n")[0] or type(error).__name__
            raise ValueError(
                f"the progress in {self.path} is damaged ({why}); remove it to start afresh"
            ) from error
        if identity != self._identity(model):
            raise ValueError(f"{self.path} belongs to another training; remove it to start afresh")
        model.load_state_dict(saved["model"])
        optimiser.load_state_dict(saved["optimiser"])
        return saved["history"]

    def keep(self, model: nn.Module, optimiser: torch.optim.Optimizer, history: dict) -> None:
        """Put the state in the file's place at once.

        Raises:
            OSError: it cannot be written; what was there before stays.

        """
        if self.path is None:
            return
        state = {"model": model.state_dict(), "optimiser": optimiser.state_dict()}
        content = io.BytesIO()  # so that a full disk is an OSError, not PyTorch's
        torch.save({"identity": self._identity(model), "history": history, **state}, content)
        with written_whole(self.path) as part:
            part.write_bytes(content.getbuffer())


class CapturedStep:
    """``learn(x, y, penalty)``, which sets a model's gradients, replayed as a CUDA graph.

    The first call records it for batches of its shape, and for its penalty.
    """

    def __init__(self, learn: Callable[[Tensor, Tensor, float], Tensor], model: nn.Module) -> None:
        self._learn, self._model = learn, model
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, x: Tensor, y: Tensor, penalty: float) -> Tensor:
        """Set the gradients for a batch and return its loss."""
        if self._graph is None:
            self._record(x, y, penalty)
        self._x.copy_(x)
        self._y.copy_(y)
        self._graph.replay()
        return self._loss

    def _record(self, x: Tensor, y: Tensor, penalty: float) -> None:
        self._x, self._y = x.clone(), y.clone()
        before = copy.deepcopy(self._model.state_dict())
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(3):  # what libraries set up when first called must not be recorded
                self._learn(self._x, self._y, penalty)
        torch.cuda.current_stream().wait_stream(aside)
        self._model.load_state_dict(before)  # these batches do not count for running statistics
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._loss = self._learn(self._x, self._y, penalty)
