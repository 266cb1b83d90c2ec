//! `outgate man` and `outgate completions`: both generated from the description that parses the command line.

use super::{Exit, HELP_WIDTH, Outcome};
use clap::{Args, Command, ValueEnum};
use clap_mangen::Man;
use std::io::{self, Write};

/// Print shell completions
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  outgate completions bash > /etc/bash_completion.d/outgate
  outgate completions zsh > /usr/share/zsh/site-functions/_outgate
  outgate completions fish > ~/.config/fish/completions/outgate.fish")]
pub(super) struct CompletionsArguments {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

/// Print a manual page: outgate(1), all commands in one, or outgate.toml(5)
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  outgate man | man -l -
  outgate man > /usr/share/man/man1/outgate.1
  outgate man outgate.toml > /usr/share/man/man5/outgate.toml.5")]
pub(super) struct ManArguments {
    /// The page
    #[arg(value_enum, default_value = "outgate")]
    page: Page,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Page {
    /// The commands
    Outgate,
    /// The configuration file
    #[value(name = "outgate.toml")]
    Configuration,
    /// The help of every command, for the documentation
    #[value(hide = true)]
    Help,
}

const TAIL: &str = r#".SH FILES
.TP
\fI/etc/outgate/outgate.toml\fR
The configuration, outgate.toml(5). Every key is optional.
.TP
\fI/etc/outgate/conf.d/*.toml\fR
Further files of the configuration, read after it.
.TP
\fI/etc/outgate/whitelist\fR
The whitelist: *.rules, *.lst and *.json files.
.TP
\fI/run/outgate/control.sock\fR, \fI$XDG_RUNTIME_DIR/outgate/control.sock\fR
The control socket, of a service and of a daemon started by hand.
.TP
\fI/var/lib/outgate\fR, \fI$XDG_STATE_HOME/outgate\fR
What is kept across a restart.
.SH SYSTEMD
The Debian package has units.
.I outgate.service
is the daemon, with its own user and without capabilities;
.I outgate.socket
and
.I outgate\-admin.socket
hold its first listeners.
.I outgate\-firewall.service
applies the firewall at the start of the machine, and
.I outgate\-host.service
guards interfaces that come later. A new installation runs the daemon on loopback and guards nobody:
.B outgate setup
shows what is on the host and guards it. After a change of
.I [listen]
run
.BR "outgate listen apply" ,
which writes a socket unit for each address, named
.IR outgate\-listen\-KEY\-ADDRESS\-PORT.socket .
.PP
.nf
outgate setup \-\-guest\-interface br0
systemctl enable \-\-now outgate\-firewall.service
systemctl reload outgate.service
systemctl status outgate.service outgate\-host.service
journalctl \-u outgate.service
.fi
.SH ENVIRONMENT
.TP
OUTGATE_CONFIG
The configuration file, unless
.B \-\-config
names one.
.TP
RUST_LOG
What
.B outgate run
logs, unless
.B \-\-log\-level
is given.
.SH SEE ALSO
.BR outgate.toml (5),
.BR nft (8),
.BR ip-rule (8),
.BR curl (1)
"#;

pub(super) fn completions(arguments: &CompletionsArguments, mut command: Command, out: &mut dyn Write) -> Outcome {
    let shell = match arguments.shell {
        Shell::Bash => clap_complete::Shell::Bash,
        Shell::Zsh => clap_complete::Shell::Zsh,
        Shell::Fish => clap_complete::Shell::Fish,
    };
    // The generator panics on a write error, so it writes to memory, which never fails.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, "outgate", &mut script);
    out.write_all(&script)?;
    Ok(Exit::Good)
}

pub(super) fn man(arguments: &ManArguments, command: Command, out: &mut dyn Write) -> Outcome {
    match arguments.page {
        Page::Outgate => commands(command, out),
        Page::Configuration => {
            out.write_all(outgate::config::manual().as_bytes())?;
            Ok(Exit::Good)
        }
        Page::Help => {
            let mut command = command.term_width(HELP_WIDTH);
            command.build();
            help(&mut command, "outgate", out)?;
            Ok(Exit::Good)
        }
    }
}

/// Writes what `--help` prints for this command and those below it, as sections of a page in Markdown.
fn help(command: &mut Command, path: &str, out: &mut dyn Write) -> io::Result<()> {
    let text = command.render_long_help().to_string();
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    write!(out, "\n### {path}\n\n```text\n{}\n```\n", lines.join("\n").trim_end())?;
    command.get_subcommands_mut().try_for_each(|inner| {
        let path = format!("{path} {}", inner.get_name());
        help(inner, &path, out)
    })
}

fn commands(mut command: Command, out: &mut dyn Write) -> Outcome {
    command.build();
    let page = Man::new(command.clone()).manual("outgate");
    page.render_title(out)?;
    page.render_name_section(out)?;
    page.render_synopsis_section(out)?;
    page.render_description_section(out)?;
    out.write_all(b".SH COMMANDS\n")?;
    for inner in command.get_subcommands() {
        render_command(inner, "outgate", out)?;
    }
    let after = after_help(&command);
    let (examples, exits) = after.split_once("\n\nExit codes:\n").unwrap_or((&after, ""));
    writeln!(out, ".SH EXAMPLES\n{}", verbatim(examples.trim_start_matches("Examples:\n")))?;
    writeln!(out, ".SH EXIT STATUS\n{}", verbatim(exits))?;
    out.write_all(TAIL.as_bytes())?;
    Ok(Exit::Good)
}

/// Renders one command as a subsection, followed by its subcommands.
fn render_command(command: &Command, parent: &str, out: &mut dyn Write) -> io::Result<()> {
    let name = format!("{parent} {}", command.get_name());
    if command.has_subcommands() {
        return command.get_subcommands().try_for_each(|inner| render_command(inner, &name, out));
    }
    writeln!(out, ".SS {name}")?;
    let page = Man::new(command.clone().bin_name(&name));
    let mut text = Vec::new();
    page.render_synopsis_section(&mut text)?;
    page.render_description_section(&mut text)?;
    page.render_options_section(&mut text)?;
    // Each section has a heading of the page's own level, which would break the structure of the page.
    for line in String::from_utf8_lossy(&text).lines() {
        if !line.starts_with(".SH ") {
            writeln!(out, "{line}")?;
        } else {
            writeln!(out, ".PP")?;
        }
    }
    writeln!(out, ".PP\n{}", verbatim(&after_help(command)))
}

fn after_help(command: &Command) -> String {
    command.get_after_help().map(ToString::to_string).unwrap_or_default()
}

/// Formats text verbatim: lines neither filled nor hyphenated, and roff's special characters escaped.
fn verbatim(text: &str) -> String {
    let lines = text.lines().map(|line| {
        let escaped = line.replace('\\', "\\e").replace('-', "\\-");
        if escaped.starts_with(['.', '\'']) { format!("\\&{escaped}") } else { escaped }
    });
    format!(".nf\n{}\n.fi", lines.collect::<Vec<_>>().join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn page() -> String {
        let mut out = Vec::new();
        commands(super::super::Program::command(), &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn the_manual_is_one_page_with_every_command() {
        let page = page();
        assert_eq!(page.matches("\n.TH ").count() + usize::from(page.starts_with(".TH ")), 1, "{page}");
        for command in ["run", "check", "explain", "whitelist add", "whitelist reload", "status", "flows", "man"] {
            assert!(page.contains(&format!(".SS outgate {command}\n")), "{command}: {page}");
        }
        for section in [
            "NAME",
            "SYNOPSIS",
            "DESCRIPTION",
            "COMMANDS",
            "EXAMPLES",
            "EXIT STATUS",
            "FILES",
            "SYSTEMD",
            "ENVIRONMENT",
        ] {
            assert_eq!(page.matches(&format!(".SH {section}\n")).count(), 1, "{section}");
        }
    }

    #[test]
    fn there_are_completions_for_three_shells() {
        for shell in Shell::value_variants() {
            let mut out = Vec::new();
            completions(&CompletionsArguments { shell: *shell }, super::super::Program::command(), &mut out).unwrap();
            assert!(String::from_utf8(out).unwrap().contains("explain"), "{shell:?}");
        }
    }
}
