//! The page's icons, as SVG in the colour of the text. Pure.

use maud::{Markup, html};

/// Drawn in 24 by 24, with lines of 1.75.
fn icon(path: &str) -> Markup {
    html! {
        svg.icon viewBox="0 0 24 24" aria-hidden="true" focusable="false" { path d=(path) {} }
    }
}

/// A house.
pub(super) fn overview() -> Markup {
    icon("M4 11.5 12 5l8 6.5V20h-5.5v-5h-5v5H4z")
}

/// A laptop and a phone.
pub(super) fn devices() -> Markup {
    icon("M5 16V6h13v3M3 19h10M16.5 12h4v8h-4z")
}

/// A picture.
pub(super) fn browse() -> Markup {
    icon("M4 5h16v14H4zM4 16l5-5 4 4 2.5-2.5L20 17M15.5 9.5h.01")
}

/// A folder.
pub(super) fn folders() -> Markup {
    icon("M4 6h5.5l2 2.5H20V19H4z")
}

/// A pulse.
pub(super) fn health() -> Markup {
    icon("M3 12h4l2.5-6 4.5 12 2.5-6H21")
}

/// A list.
pub(super) fn activity() -> Markup {
    icon("M9 7h11M9 12h11M9 17h11M4.5 7h.01M4.5 12h.01M4.5 17h.01")
}

/// A tick in a circle.
pub(super) fn well() -> Markup {
    icon("M12 3.5a8.5 8.5 0 1 0 0 17 8.5 8.5 0 0 0 0-17M8.3 12.3l2.5 2.5 5-5.2")
}

/// An exclamation mark in a circle.
pub(super) fn attention() -> Markup {
    icon("M12 3.5a8.5 8.5 0 1 0 0 17 8.5 8.5 0 0 0 0-17M12 8v5M12 16h.01")
}

/// Two arrows.
pub(super) fn moving() -> Markup {
    icon("M7 4v14m0 0-3-3m3 3 3-3M17 20V6m0 0-3 3m3-3 3 3")
}

/// A sheet, for contents without a picture.
pub(super) fn sheet() -> Markup {
    icon("M6 3.5h8l4 4V20.5H6zM14 3.5v4h4")
}

/// A strip of film.
pub(super) fn film() -> Markup {
    icon("M4 5h16v14H4zM8 5v14M16 5v14M4 9.7h4M4 14.3h4M16 9.7h4M16 14.3h4")
}

/// A note of music.
pub(super) fn sound() -> Markup {
    icon(
        "M9 18V6l10-2v12M9 18a2.5 2.5 0 1 1-2.5-2.5A2.5 2.5 0 0 1 9 18m10-2a2.5 2.5 0 1 1-2.5-2.5A2.5 2.5 0 0 1 19 16",
    )
}

/// The icon for contents of a media type.
pub(super) fn of_type(media_type: &str) -> Markup {
    match media_type.split('/').next().unwrap_or_default() {
        "image" => browse(),
        "video" => film(),
        "audio" => sound(),
        _ => sheet(),
    }
}
