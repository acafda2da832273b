"""Colours, type and shared CSS: the only styling of the suite.

Fonts are served by Gradio itself, so the page fetches nothing from other machines. CSS uses Gradio's colour
variables, which have a light and a dark value each.
"""

import gradio as gr
from gradio.themes.utils import fonts


def theme(present: bool = False) -> gr.themes.Base:
    """A calm theme: grey surfaces, one teal accent that is dark enough for white text on it.

    With `present`, type grows with the screen: reading text is 1/64 of its width, 30 px of 1920.
    """
    return gr.themes.Base(
        primary_hue="teal",
        secondary_hue="teal",
        neutral_hue="slate",
        text_size=_STAGE if present else "md",
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
        # The accent itself is too light for text on light grey.
        link_text_color="*primary_700",
        link_text_color_active="*primary_700",
        link_text_color_hover="*primary_800",
        link_text_color_visited="*primary_700",
        link_text_color_dark="*primary_300",
        link_text_color_active_dark="*primary_300",
        link_text_color_hover_dark="*primary_200",
        link_text_color_visited_dark="*primary_300",
    )


def css(present: bool = False) -> str:
    """The shared style sheet; with `present`, large type and full width for a projector."""
    return _SHARED + (_PRESENT if present else "")


# Sizes by the width of the screen, so that a row of seats sees the same on every projector.
_STAGE = gr.themes.Size(
    xxs="max(12px, 1.05vw)",
    xs="max(14px, 1.15vw)",
    sm="max(15px, 1.3vw)",
    md="max(16px, 1.56vw)",
    lg="max(18px, 1.75vw)",
    xl="max(22px, 2.1vw)",
    xxl="max(26px, 2.5vw)",
    name="text_stage",
)

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
:focus-visible { outline: 3px solid var(--color-accent) !important; outline-offset: 2px; }
@media (prefers-reduced-motion: reduce) {
  * { animation-duration: .01ms !important; animation-iteration-count: 1 !important; transition: none !important; }
}
"""

_PRESENT = """
.gradio-container { max-width: none !important; }
.lp-card h2, .lp-card ul { display: none; }
.lp-card p { margin: 0; }
.prose { font-size: var(--text-md); }
.prose :not(h1, h2, h3, h4) { font-size: inherit; }
.nav-holder { display: none; }
#demos > .tab-wrapper button { font-size: var(--text-lg); }
footer { display: none !important; }
.lp-ask { position: fixed; right: 1vw; bottom: 1vw; width: 3vw; height: 3vw; min-width: 32px; min-height: 32px;
  border-radius: 50%; background: var(--button-primary-background-fill); color: var(--button-primary-text-color);
  font-size: var(--text-lg); z-index: 50; }
.lp-help { width: min(94vw, 90em); max-height: 92vh; margin: auto; padding: 2vw; overflow: auto;
  font-size: var(--text-md); background: var(--block-background-fill); color: var(--body-text-color);
  border: 1px solid var(--border-color-primary); border-radius: 1vw; }
.lp-help::backdrop { background: rgb(0 0 0 / .6); }
.lp-help h2 { font-size: var(--text-lg); font-weight: 700; margin: .5em 0; }
.lp-help ol { list-style: decimal; padding-left: 1.6em; }
.lp-help li { margin-bottom: .4em; }
.lp-help th { text-align: left; padding-right: 1.5em; white-space: nowrap; }
.lp-help a { color: var(--link-text-color); text-decoration: underline; }
.lp-help button { padding: .3em 1em; border-radius: .3em; background: var(--button-primary-background-fill);
  color: var(--button-primary-text-color); }
"""
