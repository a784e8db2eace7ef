//! How a failure looks: a title, a line of stars, `Key: value` lines, a line of stars, as Dragonfly's tools print it.

use std::io::{self, IsTerminal as _, Write as _};

const STARS: &str = "****************************************";
const ITALIC_BOLD: &str = "\x1b[3m\x1b[1m";
const RED: &str = "\x1b[38;5;1m";
const CYAN: &str = "\x1b[38;5;6m";
const BLACK: &str = "\x1b[38;5;0m";
const RESET: &str = "\x1b[m";

/// A failure, ready to be printed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// What failed: `Downloading Failed!`.
    pub title: &'static str,
    /// Keys without their colon, and values.
    pub lines: Vec<(&'static str, String)>,
    /// Response headers of an origin, below everything else.
    pub headers: Vec<(String, String)>,
}

impl Report {
    /// The text, every line ended; colours only when asked for.
    #[must_use]
    pub fn render(&self, colours: bool) -> String {
        let paint = |colour: &str, text: &str| {
            if colours { format!("{colour}{ITALIC_BOLD}{text}{RESET}") } else { text.to_owned() }
        };
        let stars = paint(BLACK, STARS);
        let mut text = format!("{}\n{stars}\n", paint(RED, self.title));
        for (key, value) in &self.lines {
            text.push_str(&format!("{} {value}\n", paint(CYAN, &format!("{key}:"))));
        }
        if !self.headers.is_empty() {
            text.push_str(&format!("{}\n", paint(CYAN, "Header:")));
            for (key, value) in &self.headers {
                text.push_str(&format!("  {}: {value}\n", paint(CYAN, &format!("[{key}]"))));
            }
        }
        text.push_str(&stars);
        text.push('\n');
        text
    }

    /// Prints to stdout, where Dragonfly's tools print failures, or to stderr when stdout carries content.
    pub fn print(&self, stdout_is_taken: bool) {
        // Nobody is left to tell when the terminal is gone.
        let _printed = if stdout_is_taken {
            io::stderr().lock().write_all(self.render(io::stderr().is_terminal()).as_bytes())
        } else {
            io::stdout().lock().write_all(self.render(io::stdout().is_terminal()).as_bytes())
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        Report {
            title: "Downloading Failed!",
            lines: vec![("Bad Status Code", "404".to_owned()), ("Message", "404 Not Found".to_owned())],
            headers: vec![("content-type".to_owned(), "text/html".to_owned())],
        }
    }

    #[test]
    fn plain() {
        let stars = "*".repeat(40);
        let expected = format!(
            "Downloading Failed!\n{stars}\nBad Status Code: 404\nMessage: 404 Not Found\nHeader:\n  [content-type]: text/html\n{stars}\n"
        );
        assert_eq!(report().render(false), expected);
    }

    #[test]
    fn colours_only_decorate() {
        let mut text = report().render(true);
        assert!(text.starts_with("\x1b[38;5;1m\x1b[3m\x1b[1mDownloading Failed!\x1b[m\n"), "{text:?}");
        for code in [ITALIC_BOLD, RED, CYAN, BLACK, RESET] {
            text = text.replace(code, "");
        }
        assert_eq!(text, report().render(false));
    }
}
