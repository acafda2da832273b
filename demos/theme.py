"""Colours, type and shared CSS: the only styling of the suite.

Fonts are served by Gradio itself, so the page fetches nothing from other machines. CSS uses Gradio's colour
variables, which have a light and a dark value each.
"""

import gradio as gr
from gradio.themes.utils import fonts


def theme() -> gr.themes.Base:
    """A calm theme: grey surfaces, one teal accent that is dark enough for white text on it."""
    return gr.themes.Base(
        primary_hue="teal",
        secondary_hue="teal",
        neutral_hue="slate",
        text_size="md",
        radius_size="md",
        # Weights 500 and 600 of these files lack most letters, and the page would mix two typefaces.
        font=(
            fonts.LocalFont("IBM Plex Sans", weights=(400, 700)),
            "ui-sans-serif",
            "system-ui",
            "sans-serif",
        ),
        font_mono=(
            fonts.LocalFont("IBM Plex Mono", weights=(400, 700)),
            "ui-monospace",
            "Consolas",
            "monospace",
        ),
    ).set(
        body_background_fill="*neutral_50",
        body_background_fill_dark="*neutral_950",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        block_background_fill="white",
        block_background_fill_dark="*neutral_900",
        block_border_width="1px",
        block_shadow="none",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_hover_dark="*primary_600",
        button_primary_text_color="white",
        button_primary_text_color_dark="white",
    )


def css(present: bool = False) -> str:
    """The shared style sheet; with `present`, large type and full width for a projector."""
    return _SHARED + (_PRESENT if present else "")


_SHARED = """
.lp-card h2 { margin: 0 0 .2rem; }
.lp-card p { margin: 0 0 .5rem; color: var(--body-text-color-subdued); }
.lp-card ul { margin: 0; padding-left: 1.2rem; }
.lp-card a { color: var(--link-text-color); text-decoration: underline; }
.lp-status { font-size: .95em; color: var(--body-text-color-subdued); min-height: 1.5em; }
.lp-status[data-state="failed"] { color: var(--body-text-color); padding-left: .6rem;
  border-left: .3rem solid var(--error-border-color); }
.lp-evidence { overflow-x: auto; }
.lp-evidence table { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; }
.lp-evidence caption { text-align: left; font-weight: 600; padding-bottom: .3rem; }
.lp-evidence table, .lp-evidence tr { border: 0 !important; }
.lp-evidence th, .lp-evidence td { text-align: left; padding: .35rem .6rem; border: 0 !important;
  border-bottom: 1px solid var(--border-color-primary) !important; }
.lp-evidence tbody th { font-weight: 400; }
.lp-evidence td.lp-here { font-weight: 600; }
:focus-visible { outline: 3px solid var(--color-accent); outline-offset: 2px; }
@media (prefers-reduced-motion: reduce) {
  * { animation-duration: .01ms !important; transition: none !important; }
}
"""

# Gradio sizes its type with rem-free variables, so each step is raised here; the reading text becomes 22 px.
_PRESENT = """
.gradio-container { --text-xs: 16px; --text-sm: 18px; --text-md: 22px; --text-lg: 26px; --text-xl: 30px;
  --text-xxl: 36px; --input-text-size: 22px; --button-large-text-size: 26px; --block-label-text-size: 20px;
  max-width: none !important; font-size: 22px; }
.lp-card ul { display: none; }
.lp-status { font-size: 20px; }
button[role="tab"], .block label span, .block label { font-size: 22px !important; }
footer { display: none !important; }
"""
