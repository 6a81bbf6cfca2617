//! `streamgate plugin new`: a plugin that works and is tested, to be changed.

use std::path::PathBuf;

use crate::cli::Failure;
use crate::cli::plugin::PLUGINS;
use crate::config::did_you_mean;
use crate::lua::{BUILT_IN, TEMPLATE, is_name};
use crate::policy::{Phase, Phases};

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Options {
    /// Its name: lower-case letters, digits and `-`.
    name: String,
    /// The phases in which it is to be asked; several after one another or with commas.
    #[arg(
        long = "phase",
        value_name = "PHASE",
        num_args = 1..,
        value_delimiter = ',',
        default_value = "authorize",
        value_parser = phase
    )]
    phases: Vec<Phase>,
    /// The folder of plugins in which it is made.
    #[arg(long = "in", value_name = "DIR", default_value = PLUGINS)]
    folder: PathBuf,
}

pub(super) fn run(options: &Options) -> Result<(), Failure> {
    let name = &options.name;
    let refused = |message: String| Err(Failure { code: 2, message });
    if !is_name(name) || !name.starts_with(|it: char| it.is_ascii_lowercase()) {
        return refused(format!(
            "{name:?} is not a plugin's name: expected a lower-case letter, then such letters, digits and `-`, at most 64"
        ));
    }
    if BUILT_IN.iter().any(|(it, _)| it == name) {
        return refused(format!("{name:?} is built in, and a folder of that name would take its place"));
    }
    let folder = options.folder.join(name);
    let failed = |it: std::io::Error| Failure::new(format!("{}: {it}", folder.display()));
    std::fs::create_dir_all(&options.folder).map_err(failed)?;
    match std::fs::create_dir(&folder) {
        Err(it) if it.kind() == std::io::ErrorKind::AlreadyExists => {
            return Err(Failure::new(format!(
                "{} exists, and nothing in it was changed; take another name, or remove it first",
                folder.display()
            )));
        }
        made => made.map_err(failed)?,
    }
    let phases: Phases = options.phases.iter().copied().collect();
    for (file, text) in TEMPLATE {
        let path = folder.join(file);
        std::fs::write(&path, fill(text, name, phases)).map_err(failed)?;
        outln!("{}", path.display());
    }
    let shown = folder.display();
    outln!(
        "\n{name} is asked in {}.\n\n  \
         streamgate plugin test {shown}\n      runs its tests; change plugin.lua and spec.lua together\n  \
         chain = [\"{name}\"]\n      in a route of streamgate.toml has it asked\n  \
         streamgate check --config streamgate.toml --explain\n      shows where it stands\n  \
         streamgate plugin types\n      lets an editor complete and check what you write",
        phases.names()
    );
    Ok(())
}

fn phase(text: &str) -> Result<Phase, String> {
    Phase::find(text).ok_or_else(|| {
        let known: Vec<&str> = Phase::ALL.iter().map(|it| it.name()).collect();
        let there_are = format!("there are {}", known.join(", "));
        did_you_mean(text, known.iter().copied(), &there_are).trim_start().to_owned()
    })
}

/// A file of the template for one plugin. What stands between `-- {{for PHASE…}}` and `-- {{end}}` is for plugins that are
/// asked in one of these phases.
fn fill(text: &str, name: &str, phases: Phases) -> String {
    let names: Vec<String> = phases.iter().map(|it| format!("{:?}", it.name())).collect();
    let mut filled = String::new();
    let mut is_kept = true;
    for line in text.lines() {
        match line.strip_prefix("-- {{").and_then(|it| it.strip_suffix("}}")) {
            Some("end") => is_kept = true,
            Some(of) => is_kept = of.split(' ').filter_map(Phase::find).any(|it| phases.contains(it)),
            None if is_kept => {
                filled += line;
                filled.push('\n');
            }
            None => {}
        }
    }
    filled
        .replace("\n\nend)\n", "\nend)\n") // the last of the tests ends like the others
        .replace("{{name}}", name)
        .replace("{{class}}", &name.replace('-', "_"))
        .replace("{{phases}}", &names.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lua::{Bundle, run_spec};

    #[test]
    fn a_new_plugin_passes_its_tests_in_any_phases() {
        let folder = std::env::temp_dir().join(format!("streamgate-new-{}", std::process::id()));
        let mut cases: Vec<(String, Vec<Phase>)> =
            Phase::ALL.into_iter().map(|it| (it.name().replace('_', "-"), vec![it])).collect();
        cases.push(("all".into(), Phase::ALL.to_vec()));
        for (name, phases) in cases {
            let name = format!("in-{name}");
            run(&Options { name: name.clone(), phases: phases.clone(), folder: folder.clone() })
                .expect("it can be made");
            let bundle = Bundle::read(&name, &folder.join(&name)).expect("it is whole");
            for (file, it) in &bundle.files {
                assert!(!it.text.contains("{{") && !it.text.contains("}}"), "{name}/{file}: {}", it.text);
            }
            let report = run_spec(bundle, true).unwrap_or_else(|it| panic!("{name}: {it}"));
            for (what, failure) in &report.tests {
                assert_eq!(*failure, None, "{name} {what}");
            }
            assert!(!report.tests.is_empty(), "{name} has no tests");
            // With all phases, what one refuses does not come to the next.
            let missed: Vec<_> = report.lines.iter().flat_map(|it| it.missed()).collect();
            assert!(missed.is_empty() || phases.len() > 1, "{name} has lines without a test: {missed:?}");
        }
        drop(std::fs::remove_dir_all(folder));
    }
}
