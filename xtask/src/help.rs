//! The help of every command: one type, one layout, one place that prints it.

/// The help of one command, as `cargo xtask COMMAND --help` prints it.
pub(crate) struct Help {
    /// The command line after `cargo xtask`.
    pub(crate) usage: &'static str,
    /// One sentence for the list of commands.
    pub(crate) summary: &'static str,
    /// Further sentences, or nothing.
    pub(crate) details: &'static str,
    /// Each option and argument, with one line about it.
    pub(crate) options: &'static [(&'static str, &'static str)],
    /// Command lines after `cargo xtask`, with what each is for.
    pub(crate) examples: &'static [(&'static str, &'static str)],
}

/// The option that every command has.
const OF_EVERY_COMMAND: (&str, &str) = ("-h, --help", "Prints this help.");

impl Help {
    /// Returns the whole text.
    pub(crate) fn text(&self) -> String {
        let Self { usage, summary, details, options, examples } = self;
        let mut text = format!("{summary}\n");
        if !details.is_empty() {
            text += &format!("{details}\n");
        }
        text += &format!("\nUsage: cargo xtask {usage}\n\n");
        text += &columns(options.iter().copied().chain([OF_EVERY_COMMAND]), "");
        let heading = if examples.len() == 1 { "Example" } else { "Examples" };
        text += &format!("\n{heading}:\n");
        text + &columns(examples.iter().copied(), "cargo xtask ")
    }
}

/// Lays out pairs in two columns.
pub(crate) fn columns<'a>(rows: impl Iterator<Item = (&'a str, &'a str)> + Clone, prefix: &str) -> String {
    let width = rows.clone().map(|(left, _)| left.chars().count()).max().unwrap_or(0);
    rows.map(|(left, right)| format!("  {prefix}{left:<width$}  {right}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_has_usage_options_and_example_in_columns() {
        let help = Help {
            usage: "bake [--hot] NAME",
            summary: "Bakes a cake.",
            details: "It needs flour.",
            options: &[("--hot", "Uses the oven."), ("NAME", "The cake.")],
            examples: &[("bake --hot sponge", "a sponge cake")],
        };
        let expected = "\
Bakes a cake.
It needs flour.

Usage: cargo xtask bake [--hot] NAME

  --hot       Uses the oven.
  NAME        The cake.
  -h, --help  Prints this help.

Example:
  cargo xtask bake --hot sponge  a sponge cake
";
        assert_eq!(help.text(), expected);
    }
}
