"""How new the generated networks are, beside baselines that need no generative model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from html import escape
from typing import TYPE_CHECKING, Any

import gradio as gr

from demos import parts
from demos.pdiff_parts import JOBS, NOISY, Generated, Handles, kept, table
from models.runtime import ModelHandle, Report

if TYPE_CHECKING:
    from models.pdiff.pipeline import Checkpoints, Pipeline

COMPARED = 30
PLOT_HEIGHT, BARS_HEIGHT = 450, 280  # px, so that nothing jumps when they fill
FAILS = 5.0  # points below the originals at which one calls it failure
Groups = Mapping[str, tuple[Any, Any, Any]]  # accuracy in percent, largest IoU with an original, distance; each (N,)


def novelty_panel(handles: Handles, state: gr.State) -> None:
    """Lays out the panel. `state` holds the visitor's networks."""
    gr.Markdown(
        "Two networks are alike if they get the same pictures wrong (IoU of wrong predictions), or if their "
        "parameters are close. A later critique (Zeng et al. 2025) asks whether P-diff does more than simple baselines "
        f"that need no generative model. Here are {COMPARED} of each beside the networks you generated."
    )
    with gr.Row():
        compare = gr.Button("Compare", variant="primary", elem_id="pdiff-compare", scale=0, min_width=280)
    said = gr.HTML("<p>Generate networks first, then press Compare.</p>", elem_id="pdiff-compared", min_height=95)
    with gr.Row(min_height=PLOT_HEIGHT):
        scatter = gr.Plot(label="Novelty against accuracy", show_label=False, elem_id="pdiff-novelty")
    with gr.Row(min_height=BARS_HEIGHT):
        bars = gr.Plot(label="How alike, between and within groups", show_label=False, elem_id="pdiff-bars")
        figures = gr.HTML(elem_id="pdiff-novelty-table")

    @parts.user_errors
    def compare_networks(state: Generated | None) -> Iterator[tuple[Any, ...]]:
        mine = kept(state)
        still = (gr.skip(),) * 3
        yield "<p>Testing the baselines</p>", *still
        yield _compare(handles[mine["zoo"]], mine)

    compare.click(
        compare_networks, state, [said, scatter, bars, figures], **JOBS, api_name="pdiff_novelty",
        show_progress="minimal", show_progress_on=said,
    )  # fmt: skip


def _compare(handle: ModelHandle, state: Generated) -> tuple[Any, ...]:
    """The four outputs of the panel."""
    from demos.pdiff_plots import bars_figure, novelty_figure

    groups, bars, scale = handle.run(partial(_measured, state), progress=gr.Progress())
    said = "".join(f"<p>{escape(line)}</p>" for line in verdict(groups, scale))
    return said, novelty_figure(groups), bars_figure(bars), _table(groups, scale)


def _measured(state: Generated, pipeline: Pipeline, report: Report) -> tuple[Groups, dict[str, float], float]:
    """Runs where the zoo is: figures by group, means of similarity, and the scale of the noise."""
    import numpy as np
    import torch

    from models.pdiff import measures
    from models.pdiff.threads import one_thread

    with one_thread():
        wrong = torch.from_numpy(np.unpackbits(state["wrong"], axis=1, count=len(pipeline.data.test_y)).astype(bool))
        made = pipeline.decode(torch.from_numpy(state["latents"]))
        scale = pipeline.noise_as_good(float(measures.accuracies(pipeline.original_wrong).mean()) - 0.1)
        others = pipeline.baselines(COMPARED, noise_scale=scale or NOISY)
        tested: dict[str, tuple[Checkpoints, torch.Tensor]] = {
            "originals": (pipeline.originals, pipeline.original_wrong),
            "generated": (made, wrong),
            **{name: (group, pipeline.wrong(group)) for name, group in others.items()},
        }
        groups, similarities = {}, {}
        for name, (group, errors) in tested.items():
            own = name == "originals"
            similar = similarities[name] = measures.similarity(errors, pipeline.original_wrong)
            distance = measures.nearest(group.vectors, pipeline.originals.vectors, own)
            values = measures.accuracies(errors), measures.max_similarity(similar, own), distance
            groups[name] = (values[0].numpy(), values[1].numpy(), values[2].numpy())
        among = measures.similarity(wrong, wrong)
    bars = {
        "among originals": float(measures.off_diagonal(similarities["originals"]).mean()),
        "among generated": float(measures.off_diagonal(among).mean()) if len(among) > 1 else 1.0,
        "generated with originals": float(similarities["generated"].mean()),
        "generated with the nearest original": float(groups["generated"][1].mean()),
        "noise with the nearest original": float(groups["noise"][1].mean()),
    }
    return groups, bars, scale


def verdict(groups: Groups, scale: float) -> list[str]:
    """What the figures say, in a sentence each.

    scale: of the noise, the largest that originals bear without loss; 0 if they bear none.
    """
    mean = {name: [float(v.mean()) for v in values] for name, values in groups.items()}
    accuracy, similar, distance = mean["generated"]
    if accuracy < mean["originals"][0] - FAILS:
        return [
            f"The generated networks do not work ({accuracy:.2f} against {mean['originals'][0]:.2f} %): "
            "this collection cannot be learned, and being far from every original means nothing."
        ]
    lines = []
    if distance <= mean["originals"][2]:
        lines.append("P-diff only memorises here: generated networks are as close to an original as its own next step.")
    elif scale == 0:
        lines.append("Originals bear none of the noises tried, so there is no noise of equal accuracy to compare with.")
    else:
        farther, behaves = distance > mean["noise"][2], similar < mean["noise"][1]
        said = {
            (True, True): "Farther from every original than noise of equal accuracy, in parameters and in behaviour",
            (True, False): "Farther from every original than noise of equal accuracy in parameters, not in behaviour",
            (False, True): "Not farther from the originals than noise of equal accuracy, but less like them in their "
            "mistakes",
            (False, False): "P-diff shows nothing new here: noise of equal accuracy is farther from every original and "
            "less like them in its mistakes",
        }[farther, behaves]
        lines.append(
            f"{said}: distance {distance:.2f} against {mean['noise'][2]:.2f}, largest IoU {similar:.3f} against "
            f"{mean['noise'][1]:.3f}, accuracy {accuracy:.2f} against {mean['noise'][0]:.2f} %."
        )
    simple = min(("mean of 16", "gaussian"), key=lambda name: abs(mean[name][1] - similar))
    lines.append(
        f"The baseline most like them is “{simple}”: accuracy {mean[simple][0]:.2f} % and largest IoU "
        f"{mean[simple][1]:.3f} against {accuracy:.2f} % and {similar:.3f}. It needs no generative model."
    )
    return lines


def _table(groups: Groups, scale: float) -> str:
    names = {"noise": f"originals + noise ({scale or NOISY} of the spread)"}
    rows: list[tuple[str, ...]] = [
        (names.get(name, name), f"{a.mean():.2f}", f"{s.mean():.3f}", f"{d.mean():.2f}")
        for name, (a, s, d) in groups.items()
    ]
    titles = ("Networks", "Accuracy (%)", "Largest IoU with an original", "Distance to the nearest")
    return table(titles, rows, "Means over each group, measured now")
