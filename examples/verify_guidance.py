"""Does each trainer find the optimal guidance?  ``python examples/verify_guidance.py out=outputs/guidance``.

Image models with a known answer: 32-number Gaussian signals, Gaussian faces at 16x16 and 64x64 (moments of the
shipped mixture), and the mixture itself.  For every trainer: captured improvement, control error along its path, hole
PSNR beside the exact posterior mean, the estimator's signal-to-noise, seconds, peak memory and calls of the backbone.
Writes ``report.json``, ``curves.png``, ``memory.png``, ``pictures-*.png``; the exit code is 1 if a row fails.  Every
training run leaves a file in ``out`` when it is done: a restart goes on with the next one.
"""

from __future__ import annotations

import hashlib
import json
import math
import multiprocessing
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

import matplotlib
import torch
from omegaconf import OmegaConf
from torch import Tensor
from tqdm import tqdm

from aid_control.batch import Batch
from aid_control.checkpoint import atomic_write, load_tensors, save_tensors
from aid_control.errors import InputError
from aid_control.images import load_backbone, load_guidance
from aid_control.images.backbones.gaussian import GaussianBackbone
from aid_control.images.backbones.mixture import MixtureBackbone
from aid_control.images.guidance import PyramidCritic
from aid_control.images.pictures import picture_rows
from aid_control.images.problem import GuidanceProblem, levels_of
from aid_control.images.study import TRAINERS, Examination, Recipe, Study, faces, fit_guess, signals, train
from aid_control.memory import peak_memory
from aid_control.program import program
from aid_control.report import Report
from aid_control.trainer import ActorCritic

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402 - after the backend is chosen

STUDIES = ("signals", "faces16", "faces64", "mixture")
SHOWN = 6  # images in a picture


def peak_megabytes() -> float:
    """Largest resident memory of this process so far, in units of 2^20 bytes."""
    return peak_memory() / 2**20


def build(name: str, cfg: dict[str, Any]) -> Study:
    """One of ``STUDIES``."""
    own = cfg[name]
    if name == "signals":
        return signals(beta=own["beta"], steps=own["steps"])
    mixture = load_backbone(cfg["backbone"])
    if not isinstance(mixture, MixtureBackbone):
        raise InputError(f"backbone is {cfg['backbone']}; expected a mixture")
    net = mixture if name == "mixture" else GaussianBackbone.matching(mixture, int(name.removeprefix("faces")))
    return faces(net, own["beta"], own["steps"])


def prepare(name: str, cfg: dict[str, Any], file: Path, place: int) -> dict[str, Any]:
    """Phase 1 and the examination of one study."""
    torch.set_num_threads(1)
    torch.manual_seed(cfg["seed"])
    study, own = build(name, cfg), cfg[name]
    exam = Examination(study, own["count"], cfg["seed"])
    actor, critic = study.networks()
    with tqdm(total=own["guess"]["iterations"], desc=f"{name}: guess", position=place, leave=False) as bar:
        seconds = fit_guess(study, actor, critic, **own["guess"], tick=bar.update)
    save_tensors(file.with_suffix(".safetensors"), actor.state_dict(), {"kind": f"study-{name}"})
    sample = study.backbone.posterior_sample(exam.y[:SHOWN], exam.mask[:SHOWN], range(SHOWN))
    assert exam.best is not None
    shown = {
        "clean": exam.x0, "masked": exam.y, "flow": exam.flow.states[-1], "optimum": exam.best,
        "posterior mean": exam.target, "posterior sample": sample,
    }  # fmt: skip
    save_tensors(file.with_suffix(".images.safetensors"), {k: v[:SHOWN].clone() for k, v in shown.items()}, {})
    return {
        "seconds": seconds, "guess_error": exam.guess_error(actor), "unguided": exam.unguided,
        "optimal": exam.optimal, "megabytes": peak_megabytes(),
        "psnr": {
            "flow": exam.hole_psnr(exam.flow.states[-1]), "optimum": exam.hole_psnr(exam.best),
            "posterior mean": exam.hole_psnr(exam.target),
        },
    }  # fmt: skip


def learn(name: str, trainer: str, cfg: dict[str, Any], file: Path, place: int) -> dict[str, Any]:
    """One training run, from the weights of phase 1."""
    torch.set_num_threads(1)
    torch.manual_seed(cfg["seed"])
    study, own = build(name, cfg), cfg[name]
    prepared = json.loads((file.parent / f"{name}-guess.json").read_text())["result"]
    exam = Examination(study, own["count"], cfg["seed"], optimal=prepared["optimal"])
    actor, critic = study.networks()
    actor.load_state_dict(load_tensors(file.parent / f"{name}-guess.safetensors")[0])
    recipe = Recipe(**own["trainers"][trainer])
    with tqdm(total=recipe.iterations, desc=f"{name}: {trainer}", position=place, leave=False) as bar:
        progress = train(study, exam, actor, critic, trainer, recipe, cfg["seed"] + 2, tick=bar.update)
    save_tensors(file.with_suffix(".safetensors"), actor.state_dict(), {"kind": f"study-{name}"})
    end = exam.run(actor).states[-1][:SHOWN]
    save_tensors(file.with_suffix(".images.safetensors"), {trainer: end.clone()}, {})
    return {
        "curve": progress.curve, "seconds": progress.seconds, "calls": progress.calls,
        "skipped": progress.skipped, "megabytes": peak_megabytes(), **exam.judge(actor),
    }  # fmt: skip


def weigh(name: str, steps: int, cfg: dict[str, Any], file: Path, place: int) -> dict[str, Any]:
    """Peak memory of two iterations of a trainer on the mini EDM backbone."""
    torch.set_num_threads(1)
    net = load_backbone()
    actor, problem = load_guidance(), GuidanceProblem(net)
    actor.requires_grad_(True).encoder.requires_grad_(False)
    critic = PyramidCritic(actor.encoder, problem.beta, problem.pixels, torch.ones(6))
    before = peak_megabytes()
    estimator, checkpointing = (name.split("+")[0], name.endswith("+checkpointing"))
    mode = TRAINERS[estimator][1]
    trainer = ActorCritic(
        problem, actor, critic, 1e-4, TRAINERS[estimator][0], mode=mode, checkpointing=checkpointing, stepwise=True,
        step_weight=problem.fall,
    )  # fmt: skip
    size = 2
    x0, mask = torch.zeros(size, *net.shape), torch.ones(size, 1, *net.shape[1:])
    for i in range(2):
        noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(i))
        trainer.iterate(Batch(noise * problem.clock.sigma_max, levels_of(problem, steps), actor.observe(x0, mask), x0))
    return {"before": before, "megabytes": peak_megabytes()}


def task(kind: str, args: tuple[Any, ...], cfg: dict[str, Any], file: Path, place: int) -> dict[str, Any]:
    """One piece of work in its own process; its result is kept in ``file``."""
    relevant = {k: cfg[k] for k in ("backbone", "seed")} | ({} if kind == "weigh" else {args[0]: cfg[args[0]]})
    relevant = {"kind": kind, "args": args, **json.loads(json.dumps(relevant))}
    if kind == "prepare":  # phase 1 does not depend on what comes after
        relevant[args[0]] = {k: v for k, v in relevant[args[0]].items() if k not in ("trainers", "bars")}
    if kind == "learn":
        relevant[args[0]] = {k: v for k, v in relevant[args[0]].items() if k != "bars"}
        relevant[args[0]]["trainers"] = cfg[args[0]]["trainers"][args[1]]
    key = hashlib.sha256(json.dumps(relevant, sort_keys=True).encode()).hexdigest()[:16]
    if file.is_file():
        kept = json.loads(file.read_text())
        if kept.get("key") == key:
            return kept["result"]
    result = {"prepare": prepare, "learn": learn, "weigh": weigh}[kind](*args, cfg, file, place)
    atomic_write(file, json.dumps({"key": key, "result": result}, indent=1).encode())
    return result


def run_all(cfg: dict[str, Any], out: Path) -> dict[str, dict[str, Any]]:
    """Every task, as soon as what it needs is there; results by name."""
    waiting: list[tuple[str, str, tuple[Any, ...]]] = [(f"{s}-guess", "prepare", (s,)) for s in cfg["studies"]]
    methods = ("score", "stein", "backprop", "backprop+checkpointing")
    waiting += [(f"memory-{m}-{n}", "weigh", (m, n)) for n in cfg["memory"] for m in methods]
    results: dict[str, dict[str, Any]] = {}
    running: dict[Future[dict[str, Any]], tuple[str, str, tuple[Any, ...], int]] = {}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(cfg["workers"], mp_context=context, max_tasks_per_child=1) as pool:
        while waiting or running:
            places = set(range(1, cfg["workers"] + 1)) - {r[3] for r in running.values()}
            while waiting and places:
                name, kind, args = waiting.pop(0)
                place = places.pop()
                running[pool.submit(task, kind, args, cfg, out / f"{name}.json", place)] = (name, kind, args, place)
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                name, kind, args, _ = running.pop(future)
                results[name] = future.result()
                tqdm.write(f"done: {name}")
                if kind == "prepare":
                    trainers = cfg[args[0]]["trainers"]
                    waiting = [(f"{args[0]}-{t}", "learn", (args[0], t)) for t in trainers] + waiting
    return results


def write_rows(report: Report, cfg: dict[str, Any], results: dict[str, dict[str, Any]]) -> None:
    """The table."""

    def note(name: str, value: float) -> None:
        report.add(name, value, "reported", True)

    for study in cfg["studies"]:
        own, guess = cfg[study], results[f"{study}-guess"]
        note(f"{study}: J of the unguided flow", guess["unguided"])
        note(f"{study}: J*{' (found by L-BFGS)' if study == 'mixture' else ''}", guess["optimal"])
        note(f"{study}: error of the guess over that of the flow", guess["guess_error"])
        for name, value in guess["psnr"].items():
            note(f"{study}: hole PSNR of the {name}, dB", value)
        for trainer in own["trainers"]:
            found, title = results[f"{study}-{trainer}"], f"{study}, {trainer}"
            bar = own["bars"].get(trainer)
            if bar is None:
                note(f"{title}: captured improvement", found["captured"])
            else:
                report.above(f"{title}: captured improvement", found["captured"], bar)
            if math.isfinite(found["error"]):
                note(f"{title}: relative control error", found["error"])
            note(f"{title}: hole PSNR, dB", found["psnr"])
            snr = found["curve"][-1]["snr"] if found["curve"] else math.nan
            if math.isfinite(snr):
                note(f"{title}: signal-to-noise of the estimator", snr)
            minutes = (guess["seconds"] + found["seconds"]) / 60
            if study in ("signals", "faces16"):
                report.below(f"{title}: minutes of one core, guess included", minutes, cfg["minutes"])
            else:
                note(f"{title}: minutes of one core, guess included", minutes)
            note(f"{title}: peak memory, MB", found["megabytes"])
            note(f"{title}: denoised images", found["calls"])
        if "best" in own["bars"]:
            best = max(results[f"{study}-{t}"]["captured"] for t in own["trainers"])
            report.above(f"{study}, best trainer: captured improvement", best, own["bars"]["best"])
    if len(cfg["memory"]) > 1:
        first, last = cfg["memory"][0], cfg["memory"][-1]
        for method in ("score", "stein"):
            peaks = [results[f"memory-{method}-{n}"]["megabytes"] for n in cfg["memory"]]
            report.below(f"peak memory of {method}, largest over smallest, {first} to {last} steps",
                         max(peaks) / min(peaks), 1.10)  # fmt: skip
        ends = [results[f"memory-backprop-{n}"]["megabytes"] for n in (first, last)]
        report.above(f"peak memory of backprop, {last} over {first} steps", ends[1] / ends[0], 1.5)


def draw_curves(out: Path, cfg: dict[str, Any], results: dict[str, dict[str, Any]]) -> None:
    studies = cfg["studies"]
    fig, axes = plt.subplots(1, len(studies), figsize=(4.2 * len(studies), 3.6), squeeze=False)
    colours = dict(zip(TRAINERS, plt.rcParams["axes.prop_cycle"].by_key()["color"], strict=False))
    for ax, study in zip(axes[0], studies, strict=True):
        for trainer in cfg[study]["trainers"]:
            curve = results[f"{study}-{trainer}"]["curve"]
            ax.plot([r["seconds"] for r in curve], [1 - r["captured"] for r in curve], label=trainer,
                    color=colours[trainer], marker=".", ms=3)  # fmt: skip
        ax.axhline(results[f"{study}-guess"]["guess_error"], color="grey", ls=":", lw=1)
        ax.set_yscale("log")
        ax.set_xscale("log")
        ax.set_title(study)
        ax.set_xlabel("seconds of phase 2, one core")
    axes[0, 0].set_ylabel("share of the improvement not captured")
    axes[0, 0].legend(fontsize=7)
    fig.text(0.995, 0.01, "dotted: squared error of the guess over that of the flow", fontsize=7, ha="right")
    fig.tight_layout(rect=(0, 0.02, 1, 1))
    fig.savefig(out / "curves.png", dpi=120)
    plt.close(fig)


def draw_memory(out: Path, cfg: dict[str, Any], results: dict[str, dict[str, Any]]) -> None:
    fig, ax = plt.subplots(figsize=(5, 3.5))
    for method in ("score", "stein", "backprop", "backprop+checkpointing"):
        peaks = [results[f"memory-{method}-{n}"]["megabytes"] for n in cfg["memory"]]
        ax.plot(cfg["memory"], peaks, marker="o", label=method.replace("+", " with "))
    ax.set(xscale="log", yscale="log", xlabel="sampler steps", ylabel="peak memory of the process, MB")
    ax.set_xticks(cfg["memory"], [str(n) for n in cfg["memory"]])
    low, high = ax.get_ylim()
    ticks = [tick for tick in (500, 1000, 2000, 4000, 8000, 16000) if low <= tick <= high]
    ax.set_yticks(ticks, [str(tick) for tick in ticks])
    ax.minorticks_off()
    ax.legend(fontsize=8)
    ax.set_title("training on the mini EDM backbone, batch 2", fontsize=9)
    fig.tight_layout()
    fig.savefig(out / "memory.png", dpi=120)
    plt.close(fig)


def draw_pictures(out: Path, cfg: dict[str, Any], study: str) -> None:
    """One row a trainer, one column an image; signals as lines."""
    rows: dict[str, Tensor] = load_tensors(out / f"{study}-guess.images.safetensors")[0]
    ends = ["optimum", "posterior mean", "posterior sample"]
    order = ["clean", "masked", "flow", *cfg[study]["trainers"], *ends]
    for trainer in cfg[study]["trainers"]:
        rows |= load_tensors(out / f"{study}-{trainer}.images.safetensors")[0]
    if study == "signals":
        fig, axes = plt.subplots(2, 3, figsize=(10, 5), sharex=True)
        for i, ax in enumerate(axes.flat):
            y = rows["masked"][i].flatten()
            for name in order[2:]:
                ax.plot(rows[name][i].flatten(), lw=1, label=name, ls="--" if name in ends else "-")
            seen = (y != 0).nonzero().flatten()
            ax.plot(seen, y[seen], "k.", label="known")
        axes[0, 0].legend(fontsize=6)
        fig.tight_layout(pad=0.4)
        fig.savefig(out / f"pictures-{study}.png", dpi=110)
        plt.close(fig)
    else:
        atomic_write(out / f"pictures-{study}.png", picture_rows({name: rows[name] for name in order}, SHOWN))


def main(cfg: Any) -> int:
    settings: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    unknown = set(settings["studies"]) - set(STUDIES)
    if unknown:
        raise InputError(f"studies: {', '.join(sorted(unknown))} unknown; expected {', '.join(STUDIES)}")
    for study in settings["studies"]:
        wrong = set(settings[study]["trainers"]) - set(TRAINERS)
        if wrong:
            raise InputError(f"trainers: {', '.join(sorted(wrong))} unknown; expected {', '.join(TRAINERS)}")
        build(study, settings)
    out = Path(settings["out"])
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror}); expected a folder") from error
    results = run_all(settings, out)
    report = Report(seed=settings["seed"], settings={k: settings[k] for k in settings["studies"]}, runs=results)
    write_rows(report, settings, results)
    if settings["studies"]:
        draw_curves(out, settings, results)
    for study in settings["studies"]:
        draw_pictures(out, settings, study)
    if settings["memory"]:
        draw_memory(out, settings, results)
    return report.finish(out)


if __name__ == "__main__":
    program("conf/verify_guidance", main)
