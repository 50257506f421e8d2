//! The commands people copy from README.md, word for word.

use super::image::source_root;
use anyhow::{Context, Result, ensure};

/// A command of the README, as words.
#[derive(Clone, Debug)]
pub struct ReadmeCommand(Vec<String>);

impl ReadmeCommand {
    /// The first indented line that starts with `program`, with the lines it goes on in.
    pub fn find(program: &str) -> Result<Self> {
        let text = std::fs::read_to_string(source_root().join("README.md"))?;
        Self::find_in(&text, program).with_context(|| format!("no command {program} in README.md"))
    }

    fn find_in(text: &str, program: &str) -> Option<Self> {
        let start = format!("    {program} ");
        let mut words = vec![];
        for line in text.lines().skip_while(|line| !line.starts_with(&start)) {
            let (part, goes_on) = match line.strip_suffix('\\') {
                Some(part) => (part, true),
                None => (line, false),
            };
            words.extend(part.split_whitespace().map(str::to_string));
            if !goes_on {
                return Some(Self(words));
            }
        }
        None
    }

    /// Puts `new` in the place of `old`, which must be there once: what a README cannot know,
    /// such as paths. Both are whole words, or both are a part of one.
    pub fn replace(self, old: &str, new: &str) -> Result<Self> {
        let line = self.0.join(" ");
        let count = line.matches(old).count();
        ensure!(count == 1, "`{old}` is {count} times in `{line}`");
        let line = line.replacen(old, new, 1);
        Ok(Self(line.split_whitespace().map(str::to_string).collect()))
    }

    /// What comes after the program's name.
    pub fn arguments(&self) -> &[String] {
        self.0.get(1..).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::ReadmeCommand;

    const TEXT: &str = "Run a b:\n\n    other x\n    vmm --a \\\n      --b c,d=/e\n    next\n";

    #[test]
    fn a_command_ends_with_its_last_line() {
        let command = ReadmeCommand::find_in(TEXT, "vmm").unwrap();
        assert_eq!(command.arguments(), ["--a", "--b", "c,d=/e"]);
        assert!(ReadmeCommand::find_in(TEXT, "Run").is_none());
    }

    #[test]
    fn what_is_not_there_cannot_be_replaced() {
        let command = ReadmeCommand::find_in(TEXT, "vmm").unwrap();
        let command = command.replace("/e", "/f").unwrap();
        assert_eq!(command.arguments()[2], "c,d=/f");
        let command = command.replace("--a ", "").unwrap();
        assert_eq!(command.arguments(), ["--b", "c,d=/f"]);
        command.replace("--a", "").unwrap_err();
    }
}
