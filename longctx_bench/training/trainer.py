"""Trainer: the training loop with validation, loss curve, checkpoints and exact resume, on one device or under DDP."""

from __future__ import annotations

import signal
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Any

import torch
from accelerate import Accelerator, InitProcessGroupKwargs

from longctx_bench.core.errors import UserError
from longctx_bench.core.io import write_text
from longctx_bench.core.provenance import environment, package_version
from longctx_bench.training import checkpointing
from longctx_bench.training.causal_attention import use_training_attention
from longctx_bench.training.checkpoint_export import save_model
from longctx_bench.training.data.data_loader import prepare_data
from longctx_bench.training.lora import add_adapters
from longctx_bench.training.loss_curve import plot_loss_curve, write_loss_csv
from longctx_bench.training.mfu import flops_per_token, matmul_rate
from longctx_bench.training.model_card import model_card
from longctx_bench.training.models import base_config, starting_model
from longctx_bench.training.optimization import NextTokenLoss, learning_rate, make_optimizer
from longctx_bench.training.recipe import Recipe

Inputs = dict[str, torch.Tensor]
"""Arguments of the loss by name; the first dimension of each is the sequence."""
LOG_EVERY = 20
"""Steps between two entries of the loss curve."""


class Trainer:
    """Runs one recipe in one folder, from the first step or the last checkpoint to the exported model and its card."""

    def __init__(self, recipe: Recipe, out: Path) -> None:
        """Prepare data, model and optimizer, and load the newest checkpoint.

        Raises:
            UserError: as :func:`longctx_bench.training.train.train`.
        """
        self.recipe = recipe
        self.out = out
        self.stopping = False
        # The first process tokenises the data, for hours where they are billions of tokens; the others wait for it.
        self.accelerator = Accelerator(kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(days=7))])
        processes = self.accelerator.num_processes
        if recipe.batch % processes:
            raise UserError(
                f"{recipe.name}: {recipe.batch} sequences per step cannot be divided among {processes} processes; "
                "change tokens_per_step or the number of processes"
            )
        with self.accelerator.main_process_first():
            if recipe.base is not None:
                # Errors of the base come before the data is tokenised, which may take hours.
                base_config(recipe)
            checkpointing.claim_folder(out, recipe)
            self.data = prepare_data(recipe, out)
        self.model = starting_model(recipe, self.data.tokenizer)
        use_training_attention(self.model, recipe.positions)
        if recipe.lora is not None:
            add_adapters(self.model, recipe.lora)
        device = self.accelerator.device
        self.model.to(device)
        self.optimizer = make_optimizer(self.model, recipe)
        progress = checkpointing.load_state(out, self.model, self.optimizer)
        self.step: int = progress["step"]
        self.curve: list[dict[str, Any]] = progress.get("curve", [])
        self.seconds: float = progress.get("seconds", 0.0)
        loss: torch.nn.Module = NextTokenLoss(self.model, recipe.precision, recipe.residual)
        if recipe.compile:
            loss = torch.compile(loss)  # type: ignore[assignment]
        self.loss = self.accelerator.prepare_model(loss) if processes > 1 else loss
        self.rate = matmul_rate(device) * processes
        self.say(
            f"{recipe.name}: {sum(p.numel() for p in self.model.parameters()):,} parameters, "
            f"{self.data.tokens:,} tokens of text, {recipe.steps:,} steps of {recipe.tokens_per_step:,} tokens on "
            f"{processes} x {device.type}, measured matmul rate {self.rate / 1e12:.3g} TFLOP/s"
            + (f", resumed at step {self.step}" if self.step else "")
        )

    def say(self, line: str) -> None:
        """Print from the first process only."""
        if self.accelerator.is_main_process:
            print(line, flush=True)

    def train(self) -> None:
        """Take the remaining steps, then save model, tokenizer, loss curve and model card."""
        if (self.out / "config.json").is_file() and self.step == 0:
            if self.accelerator.is_main_process:
                checkpointing.remove_states(self.out)
            self.say(f"{self.out}: this run is finished already")
            return
        if self.accelerator.num_processes == 1:
            signal.signal(signal.SIGTERM, lambda *_: setattr(self, "stopping", True))
        with ThreadPoolExecutor(1) as loader:
            self._training_loop(loader)
        if self.step < self.recipe.steps:
            self._save_state()
            self.say(f"stopped at step {self.step:,}; the same command goes on from here")
            return
        final = self._validate()
        if self.accelerator.is_main_process:
            self._log_validation(final)
            plot_loss_curve(self.out, self.curve, self.recipe.name)
            write_text(self.out / "README.md", model_card(self.recipe, self._card_facts(final)))
            # Last: a config.json marks the run as finished.
            save_model(self.model, self.data.tokenizer, self.out)
            checkpointing.remove_states(self.out)
        self.say(f"done: validation loss {final:.4f}, {self._summary()}")
        # No process leaves the group while the first one still writes.
        self.accelerator.wait_for_everyone()

    def _training_loop(self, loader: ThreadPoolExecutor) -> None:
        recipe = self.recipe
        window: list[torch.Tensor] = []
        began = mark = time.perf_counter()
        measured = True
        next_inputs = self._prefetch(loader, self.step)
        while self.step < recipe.steps and not self.stopping:
            inputs = next_inputs.result()
            next_inputs = self._prefetch(loader, self.step + 1)
            window.append(self._train_step(inputs))
            self.step += 1
            if self.step % LOG_EVERY == 0 or self.step == recipe.steps:
                loss = torch.stack(window).mean().item()
                now = time.perf_counter()
                # The first window includes compilation; one after a pause includes the validation or checkpoint.
                speed = len(window) * recipe.tokens_per_step / (now - mark) if measured and len(self.curve) else None
                self.curve.append(self._log_entry(loss, speed))
                window, mark, measured = [], now, True
                self._print_progress()
            pause = (
                self.step % recipe.evaluate_every == 0
                or self.step % recipe.checkpoint_every == 0
                or self._is_candidate()
            ) and self.step < recipe.steps
            if pause:
                self.seconds += time.perf_counter() - began
                self._evaluate_and_save()
                began = time.perf_counter()
                measured = False
        self.seconds += time.perf_counter() - began

    def _evaluate_and_save(self) -> None:
        """Validate, save a checkpoint or export a candidate, whichever is due."""
        recipe = self.recipe
        if self.step % recipe.evaluate_every == 0:
            self._log_validation(self._validate())
        if not self.accelerator.is_main_process:
            return
        if self._is_candidate():
            save_model(self.model, self.data.tokenizer, self.out / "candidates" / f"step-{self.step:06d}")
        if self.step % recipe.checkpoint_every == 0:
            self._save_state()

    def _save_state(self) -> None:
        log = {"curve": self.curve, "seconds": self.seconds}
        checkpointing.save_state(self.out, self.step, self.model, self.optimizer, log)

    def _is_candidate(self) -> bool:
        left = self.recipe.steps - self.step
        return (
            0 < left <= self.recipe.candidates * self.recipe.candidate_every and left % self.recipe.candidate_every == 0
        )

    def _prefetch(self, loader: ThreadPoolExecutor, step: int) -> Future[Inputs]:
        """Prepare this process's share of a step's sequences in the background."""
        share = self.recipe.batch // self.accelerator.num_processes
        return loader.submit(self._inputs, step, self.accelerator.process_index * share, share)

    def _inputs(self, step: int, first: int, count: int) -> Inputs:
        """Return the arguments of the loss for sequences ``first`` to ``first + count`` of a step."""
        recipe, batches = self.recipe, self.data.batches
        arrays: dict[str, Any] = {"rows": batches.step(step, first, count)}
        if recipe.softmax_temperatures:
            drawn = batches.temperatures(step, *recipe.softmax_temperatures, self._temperatures_per_sequence())
            arrays["softmax_temperature"] = drawn[first : first + count]
        if recipe.virtual_length:
            arrays["key_bias"] = batches.key_bias(step, recipe.virtual_length, first, count)
        on_gpu = self.accelerator.device.type == "cuda"
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        return {name: tensor.pin_memory() if on_gpu else tensor for name, tensor in tensors.items()}

    def _train_step(self, inputs: Inputs) -> torch.Tensor:
        recipe, device = self.recipe, self.accelerator.device
        inputs = {name: tensor.to(device, non_blocking=True) for name, tensor in inputs.items()}
        sequences = len(inputs["rows"])
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(recipe, self.step)
        total = torch.zeros((), device=device)
        for first in range(0, sequences, recipe.micro_batch):
            micro_batch = {name: tensor[first : first + recipe.micro_batch] for name, tensor in inputs.items()}
            weight = len(micro_batch["rows"]) / sequences
            # Gradients are exchanged between processes once per step, with the last micro-batch.
            last = first + recipe.micro_batch >= sequences
            with nullcontext() if last else self.accelerator.no_sync(self.loss):
                loss = self.loss(**micro_batch) * weight
                loss.backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), recipe.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return total

    def _temperatures_per_sequence(self) -> int:
        """Return the number of softmax temperatures of a sequence: one, or one per head."""
        return int(self.model.config.num_attention_heads) if self.recipe.temperatures_by == "head" else 1

    def _validate(self) -> float:
        """Return the mean loss of the validation rows; every process reads all of them.

        Gradients stay on: turning them off would make torch.compile build a second graph, which costs more time.
        """
        rows = torch.from_numpy(self.data.validation).to(self.accelerator.device)
        neutral: Inputs = {}
        # Neutral values, so that torch.compile needs no second graph.
        if self.recipe.softmax_temperatures:
            neutral["softmax_temperature"] = torch.ones(
                len(rows), self._temperatures_per_sequence(), device=rows.device
            )
        if self.recipe.virtual_length:
            neutral["key_bias"] = torch.zeros(len(rows), rows.shape[1] - 1, device=rows.device)
        total = 0.0
        for first in range(0, len(rows), self.recipe.micro_batch):
            micro_batch = {
                name: tensor[first : first + self.recipe.micro_batch]
                for name, tensor in {"rows": rows, **neutral}.items()
            }
            total += self.loss(**micro_batch).item() * len(micro_batch["rows"])
        return total / len(rows)

    def _log_entry(self, train_loss: float | None, speed: float | None) -> dict[str, Any]:
        lr = learning_rate(self.recipe, max(0, self.step - 1))
        return {
            "step": self.step,
            "tokens": self.step * self.recipe.tokens_per_step,
            "lr": f"{lr:.6g}",
            "train_loss": train_loss,
            "validation_loss": None,
            "tokens_per_second": speed and round(speed),
        }

    def _log_validation(self, validation_loss: float) -> None:
        self.curve.append(self._log_entry(None, None) | {"validation_loss": validation_loss})
        if self.accelerator.is_main_process:
            write_loss_csv(self.out, self.curve)
        self.say(f"step {self.step:,} validation loss {validation_loss:.4f}")

    def _print_progress(self) -> None:
        line = self.curve[-1]
        if self.step % (5 * LOG_EVERY) == 0 and line["tokens_per_second"]:
            self.say(
                f"step {self.step:,} loss {line['train_loss']:.4f} lr {line['lr']} "
                f"{line['tokens_per_second']:,} tokens/s MFU {self._mfu(line['tokens_per_second']):.1%}"
            )

    def _mfu(self, speed: float) -> float:
        return float(speed * flops_per_token(self.model, self.recipe.sequence_length) / self.rate)

    def _tokens_per_second(self) -> float:
        speeds = [line["tokens_per_second"] for line in self.curve if line["tokens_per_second"]]
        return median(speeds) if speeds else self.step * self.recipe.tokens_per_step / max(self.seconds, 1e-9)

    def _summary(self) -> str:
        speed = self._tokens_per_second()
        tokens = self.step * self.recipe.tokens_per_step
        return (
            f"{tokens:,} tokens seen in {self.seconds:.0f} s, {speed:,.0f} tokens/s, MFU {self._mfu(speed):.1%} of "
            f"{self.rate / 1e12:.3g} TFLOP/s measured"
        )

    def _card_facts(self, validation_loss: float) -> dict[str, Any]:
        import transformers

        device = self.accelerator.device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        return {
            "parameters": f"{sum(p.numel() for p in self.model.parameters()):,}",
            "tokens_seen": f"{self.step * self.recipe.tokens_per_step:,}",
            "validation_loss": f"{validation_loss:.4f}",
            "training_seconds": f"{self.seconds:.0f}",
            "tokens_per_second": f"{self._tokens_per_second():,.0f}",
            "MFU": f"{self._mfu(self._tokens_per_second()):.1%} of {self.rate / 1e12:.3g} TFLOP/s measured",
            "device": f"{self.accelerator.num_processes} x {name}",
            "code": _code(),
            "versions": f"torch {torch.__version__}, transformers {transformers.__version__}",
        }


def _code() -> str:
    """Return the package's version and, from a checkout, its commit."""
    code = environment()["git"] or {}
    changed = " with local changes" if code.get("dirty") else ""
    return f"longctx-bench {package_version()}" + (f", commit {code['commit']}{changed}" if code else "")
