//! The results where a reader of the repository finds them: tables in README.md, all of it and the charts in `tests/bench/doc`.

use super::{Row, chart, growth, table};
use crate::run::machine::Machine;
use crate::{progress, workspace};
use anyhow::{Context, Result};
use std::fs;

/// Folder of the results, from the repository's root.
pub const FOLDER: &str = "tests/bench/doc";

/// Writes the results of a machine.
pub fn update(machine: Machine, rows: &[Row]) -> Result<()> {
    let root = workspace::root();
    let folder = root.join(FOLDER);
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let name = machine.name();
    workspace::write(
        &folder.join(format!("{name}.md")),
        format!(
            "# What Nacre costs on `{name}`\n\nWritten by `cargo nacre bench --machine {name} --update-readme`; \
             [tools/README.md](../../../tools/README.md) says what the figures are.\n\n{}",
            table::markdown(machine, rows)
        ),
    )?;
    workspace::write(&folder.join(format!("{name}.svg")), chart::svg(machine, rows))?;
    if let Some(plot) = growth::svg(machine, rows) {
        workspace::write(&folder.join(format!("{name}-growth.svg")), plot)?;
    }
    let path = root.join("README.md");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let updated = with_section(&text, name, &section(machine, rows))
        .with_context(|| format!("{} has no markers for {name}", path.display()))?;
    workspace::write(&path, updated)?;
    progress::step(format_args!("wrote README.md and {FOLDER}"));
    Ok(())
}

fn section(machine: Machine, rows: &[Row]) -> String {
    let name = machine.name();
    format!(
        "\n{}\n[Everything measured on `{name}`]({FOLDER}/{name}.md), [growth]({FOLDER}/{name}-growth.svg)\n\n\
         ![Nacre and the best peer on {name}]({FOLDER}/{name}.svg)\n\n",
        table::summary(machine, rows)
    )
}

/// The text with another section between the machine's markers; `None` without these.
fn with_section(text: &str, machine: &str, section: &str) -> Option<String> {
    let (begin, end) = (format!("<!-- bench {machine}: begin -->"), format!("<!-- bench {machine}: end -->"));
    let (before, rest) = text.split_once(&begin)?;
    let (_, after) = rest.split_once(&end)?;
    Some(format!("{before}{begin}{section}{end}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_machines_own_section_changes() {
        let text = "a\n<!-- bench vtx: begin -->old<!-- bench vtx: end -->\n<!-- bench svm: begin --><!-- bench svm: end -->\nz";
        assert_eq!(
            with_section(text, "vtx", "new").as_deref(),
            Some(
                "a\n<!-- bench vtx: begin -->new<!-- bench vtx: end -->\n<!-- bench svm: begin --><!-- bench svm: end -->\nz"
            )
        );
        assert_eq!(with_section("nothing", "vtx", "new"), None);
    }
}
