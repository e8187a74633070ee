//! What was typed, as clap takes it: help and version under the name we were called by, switches with a value as Go's programs write
//! them, and errors that are a `Usage` like any other.

use clap::error::ErrorKind;
use clap::{ArgAction, CommandFactory, FromArgMatches};

use super::super::Error;
use super::Arguments;

/// As Go's command line libraries print it, which those who wrap runc look at.
const HELP: &str = " - {about}\n\nUSAGE:\n   {usage}\n\n{all-args}{after-help}";

/// What there is to do, or to say at once.
pub(crate) enum Typed {
    Command(Box<Arguments>),
    Print(String),
}

/// The name that we were called by: a link called `runc` is runc to whoever looks at our help.
pub(crate) fn program_name() -> String {
    let first = std::env::args_os().next().unwrap_or_default();
    let name = std::path::Path::new(&first).file_name().unwrap_or_default().to_string_lossy().into_owned();
    if name.is_empty() { "sampan-oci".to_owned() } else { name }
}

pub(crate) fn parse() -> Result<Typed, Error> {
    let mut command = Arguments::command();
    let words: Vec<_> = std::env::args_os().collect();
    if words.len() == 1 || words.iter().any(|word| word == "-h" || word == "--help") {
        command = with_help(command);
    }
    let words = if words.iter().any(is_valued_switch) { plain_switches(words) } else { words };
    match command.try_get_matches_from(words).and_then(|matches| Arguments::from_arg_matches(&matches)) {
        Ok(arguments) => Ok(Typed::Command(Box::new(arguments))),
        Err(error) => match error.kind() {
            ErrorKind::DisplayHelp | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
                Ok(Typed::Print(error.to_string()))
            }
            ErrorKind::DisplayVersion => Ok(Typed::Print(version())),
            _ => Err(Error::Usage(said(&error))),
        },
    }
}

/// Only where somebody asks for it: a container's start does not pay for it.
fn with_help(command: clap::Command) -> clap::Command {
    let name = program_name();
    let command = command.bin_name(&name).help_template(format!("NAME:\n   {name}{HELP}"));
    command.mut_subcommands(|command| {
        let template = format!("NAME:\n   {name} {}{HELP}", command.get_name());
        command.help_template(template)
    })
}

fn version() -> String {
    let commit = option_env!("SAMPAN_COMMIT").unwrap_or("unknown");
    // The last line is crun's way to say what is there; podman prints it, and some look for words in it.
    let features = "+SYSTEMD +APPARMOR +CAP +SECCOMP +EBPF";
    format!("{} version {}\ncommit: {commit}\nspec: 1.3.0\n{features}\n", program_name(), env!("CARGO_PKG_VERSION"))
}

fn said(error: &clap::Error) -> String {
    let text = error.to_string();
    let text = text.trim().strip_prefix("error: ").unwrap_or(&text);
    if error.kind() == ErrorKind::InvalidSubcommand
        && let Some(clap::error::ContextValue::String(name)) = error.get(clap::error::ContextKind::InvalidSubcommand)
    {
        return format!("No help topic for '{name}': there is no such command; --help lists those that there are");
    }
    // In one line: the log has one line for each error.
    text.split('\n').map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ")
}

fn is_valued_switch(word: &std::ffi::OsString) -> bool {
    word.to_str().is_some_and(|word| word.starts_with("--") && (word.ends_with("=true") || word.ends_with("=false")))
}

/// `--detach=true` is `--detach`, `--detach=false` is nothing; where the flag is a switch. The same name may be a switch after the
/// command's name and a flag with a value before it.
fn plain_switches(words: Vec<std::ffi::OsString>) -> Vec<std::ffi::OsString> {
    let mut command = Arguments::command();
    // The flags of the commands are not there before.
    command.build();
    let mut here = &command;
    let mut plain = Vec::with_capacity(words.len());
    for word in words {
        let is_switch = |name: &str| {
            let mut all = here.get_arguments();
            all.any(|argument| matches!(argument.get_action(), ArgAction::SetTrue) && argument.get_long() == Some(name))
        };
        match word.to_str().and_then(|word| word.strip_prefix("--")?.split_once('=')) {
            Some((name, "true")) if is_switch(name) => plain.push(format!("--{name}").into()),
            Some((name, "false")) if is_switch(name) => {}
            _ => {
                if std::ptr::eq(here, &raw const command) {
                    here = word.to_str().and_then(|word| command.find_subcommand(word)).unwrap_or(here);
                }
                plain.push(word);
            }
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn switches_take_values_as_go_writes_them() {
        let words = ["x", "--debug=true", "--rootless=false", "run", "--detach=false", "--keep=true", "id"];
        let plain = plain_switches(words.iter().map(Into::into).collect());
        assert_eq!(plain, ["x", "--debug", "--rootless=false", "run", "--keep", "id"]);
    }

    #[test]
    fn a_command_is_about_what_the_list_says() {
        let (listed, mut built) = (Arguments::command(), Arguments::command());
        built.build();
        for command in listed.get_subcommands() {
            let name = command.get_name();
            let with_flags = built.find_subcommand(name).expect("built");
            assert_eq!(
                command.get_about().map(ToString::to_string),
                with_flags.get_about().map(ToString::to_string),
                "{name}"
            );
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }
}
