//! Which lines of a plugin can run, and which did: the coverage of its spec.
//!
//! What can run is what Lua has compiled: a chunk that is dumped has the line of every instruction, also of functions that
//! nobody has made yet, which `lua_getinfo` cannot be asked about. What did run is what a hook is told, in VMs that have
//! one; those of a gateway have none.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::rc::Rc;

use mlua::chunk::ChunkMode;
use mlua::{HookTriggers, Lua, LuaOptions, StdLib, VmState};

use crate::lua::bundle::{Bundle, File};
use crate::lua::fault::describe;

/// The lines of one file.
#[derive(Debug)]
pub(crate) struct FileLines {
    pub(crate) path: PathBuf,
    /// Each line that can run, and whether it did.
    lines: BTreeMap<usize, bool>,
}

/// The lines of a plugin's files, while its spec runs.
#[derive(Debug)]
pub(super) struct Lines {
    /// By what Lua calls the file.
    files: RefCell<BTreeMap<String, FileLines>>,
}

/// A dumped chunk (`ldump.c` of Lua 5.4), read from its beginning. Lua has just made it; the reading ends where it has
/// another form.
struct Dump<'a>(&'a [u8]);

impl FileLines {
    /// How many lines can run.
    pub(crate) fn total(&self) -> usize {
        self.lines.len()
    }

    /// How many of them did.
    pub(crate) fn covered(&self) -> usize {
        self.lines.values().filter(|it| **it).count()
    }

    /// The lines that did not; those that nothing which can run stands between are one range.
    pub(crate) fn missed(&self) -> Vec<RangeInclusive<usize>> {
        let mut ranges: Vec<RangeInclusive<usize>> = Vec::new();
        let mut goes_on = false;
        for (line, is_covered) in &self.lines {
            match ranges.last_mut() {
                _ if *is_covered => {}
                Some(last) if goes_on => *last = *last.start()..=*line,
                _ => ranges.push(*line..=*line),
            }
            goes_on = !is_covered;
        }
        ranges
    }
}

impl Lines {
    /// Those of a plugin's own code: all of its files but the contract and the spec.
    pub(super) fn new(bundle: &Bundle) -> Result<Lines, String> {
        let mut files = BTreeMap::new();
        for (name, file) in &bundle.files {
            if name != "schema.lua" && name != "spec.lua" {
                let lines = can_run(file)?.into_iter().map(|it| (it, false)).collect();
                files.insert(chunk_name(file), FileLines { path: file.path.clone(), lines });
            }
        }
        Ok(Lines { files: RefCell::new(files) })
    }

    /// Notes what runs in a VM from now on, in all of its coroutines.
    pub(super) fn watch(self: &Rc<Self>, lua: &Lua) -> mlua::Result<()> {
        let lines = Rc::clone(self);
        lua.set_global_hook(HookTriggers::EVERY_LINE, move |_, debug| {
            if let (Some(source), Some(line)) = (debug.source().source, debug.current_line())
                && let Some(file) = lines.files.borrow_mut().get_mut(&*source)
                && let Some(is_covered) = file.lines.get_mut(&line)
            {
                *is_covered = true;
            }
            Ok(VmState::Continue)
        })
    }

    /// What was noted so far.
    pub(super) fn take(&self) -> Vec<FileLines> {
        self.files.take().into_values().collect()
    }
}

/// The lines of a file that can run, or why it is no Lua.
pub(super) fn can_run(file: &File) -> Result<Vec<usize>, String> {
    let lua = Lua::new_with(StdLib::NONE, LuaOptions::default()).map_err(|it| it.to_string())?;
    let chunk = lua.load(&file.text).set_name(chunk_name(file)).set_mode(ChunkMode::Text);
    let function = chunk.into_function().map_err(|it| describe(&it).detail)?;
    let mut lines = Vec::new();
    let dump = function.dump(false);
    Dump(&dump).chunk(&mut lines).ok_or("Lua has compiled it in a form that is not known here")?;
    let text: Vec<&str> = file.text.lines().collect();
    lines.retain(|it| text.get(it.wrapping_sub(1)).is_some_and(|it| !only_closes(it)));
    Ok(lines)
}

fn chunk_name(file: &File) -> String {
    format!("@{}", file.path.display())
}

/// Whether a line ends what others began. It has instructions, such as what makes a function, and the return that follows
/// every function's last statement, and nothing that could be tested.
fn only_closes(line: &str) -> bool {
    let code = line.split("--").next().unwrap_or_default();
    let words = code.split(|it: char| it.is_whitespace() || ")}],;".contains(it));
    words.filter(|it| !it.is_empty()).all(|it| it == "end")
}

impl<'a> Dump<'a> {
    fn chunk(mut self, lines: &mut Vec<usize>) -> Option<()> {
        // The signature, version 5.4 in its own format, six bytes that a transfer could change, the sizes of an instruction,
        // an integer and a number, and one of each of the last two; then how many upvalues the function has.
        const HEAD: &[u8] = b"\x1bLua\x54\x00\x19\x93\r\n\x1a\n\x04\x08\x08";
        let head = self.bytes(HEAD.len())?;
        if head != HEAD {
            return None;
        }
        self.bytes(8 + 8 + 1)?;
        self.function(lines)
    }

    fn function(&mut self, lines: &mut Vec<usize>) -> Option<()> {
        self.text()?; // its source
        let mut line = i64::try_from(self.size()?).ok()?;
        self.size()?; // its last line
        let is_vararg = self.bytes(3)?[1] != 0;
        let n_instructions = self.size()?;
        self.bytes(n_instructions.checked_mul(4)?)?;
        for _ in 0..self.size()? {
            match self.byte()? {
                0x03 | 0x13 => drop(self.bytes(8)?), // an integer, a number
                0x04 | 0x14 => self.text()?,
                _ => {} // nil, false, true
            }
        }
        let n_upvalues = self.size()?;
        self.bytes(n_upvalues.checked_mul(3)?)?;
        for _ in 0..self.size()? {
            self.function(lines)?;
        }
        // The line of an instruction is told by how far it is from the one before; where that is too far, by a table.
        let n_steps = self.size()?;
        let steps = self.bytes(n_steps)?;
        let mut absolute = BTreeMap::new();
        for _ in 0..self.size()? {
            let (instruction, line) = (self.size()?, self.size()?);
            absolute.insert(instruction, line);
        }
        for (idx, step) in steps.iter().enumerate() {
            line = match step.cast_signed() {
                i8::MIN => i64::try_from(*absolute.get(&idx)?).ok()?,
                step => line + i64::from(step),
            };
            // The first instruction of a function with `...` takes its arguments; it is at the line of its head.
            if (idx > 0 || !is_vararg)
                && let Ok(line) = usize::try_from(line)
            {
                lines.push(line);
            }
        }
        for _ in 0..self.size()? {
            self.text()?; // a local variable, and where it begins and ends
            self.size()?;
            self.size()?;
        }
        for _ in 0..self.size()? {
            self.text()?; // the name of an upvalue
        }
        Some(())
    }

    fn bytes(&mut self, n: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.bytes(1).map(|it| it[0])
    }

    /// Seven bits a byte, the last one marked.
    fn size(&mut self) -> Option<usize> {
        let mut size = 0_usize;
        loop {
            let byte = self.byte()?;
            size = size.checked_mul(128)? | usize::from(byte & 0x7f);
            if byte & 0x80 != 0 {
                return Some(size);
            }
        }
    }

    /// A string; one that is absent has the size 0, and the empty one the size 1.
    fn text(&mut self) -> Option<()> {
        let size = self.size()?;
        self.bytes(size.saturating_sub(1)).map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> File {
        File { path: "plugin.lua".into(), text: text.into() }
    }

    #[test]
    fn lines_that_can_run_are_those_that_lua_has_compiled() {
        let text = "--- A comment.\n\
                    local M = {}\n\
                    \n\
                    function M.never(a)\n\
                      if a then\n\
                        return function(...)\n\
                          print(...)\n\
                        end\n\
                      end\n\
                    end\n\
                    return M\n";
        let mut lines = can_run(&file(text)).expect("it is Lua");
        lines.sort_unstable();
        lines.dedup();
        // What makes a function is at the line of its end, so line 6 has nothing.
        assert_eq!(lines, [2, 4, 5, 7, 11]);
    }

    #[test]
    fn lines_are_right_in_a_long_file() {
        let mut text = String::from("local t = {}\n");
        for idx in 2..1000 {
            text += if idx % 300 == 0 { "t.x = 1.5\n" } else { "\n" };
        }
        for _ in 0..500 {
            text += "t.long = \"a string that is longer than forty characters, so it is kept otherwise\"\n";
        }
        let lines: std::collections::BTreeSet<usize> =
            can_run(&file(&text)).expect("it is Lua").into_iter().collect();
        let expected: std::collections::BTreeSet<usize> =
            [1, 300, 600, 900].into_iter().chain(1000..1500).collect();
        // The chunk returns at the line of its end.
        assert_eq!(
            lines.into_iter().filter(|it| *it < 1500).collect::<std::collections::BTreeSet<_>>(),
            expected
        );
    }

    #[test]
    fn a_file_that_is_no_lua_says_where() {
        let error = can_run(&file("local = 1")).expect_err("it is none");
        assert!(error.starts_with("plugin.lua:1:"), "{error}");
    }

    #[test]
    fn what_runs_is_noted_in_coroutines_too() {
        let text = "local co = coroutine.wrap(function()\n\
                      coroutine.yield(1)\n\
                      return 2\n\
                    end)\n\
                    co()\n\
                    if never then\n\
                      co()\n\
                      co()\n\
                    end\n";
        let bundle = Bundle {
            name: "covered".into(),
            is_built_in: false,
            files: [("plugin.lua".to_owned(), file(text))].into_iter().collect(),
        };
        let lines = Rc::new(Lines::new(&bundle).expect("it is Lua"));
        let lua = Lua::new();
        lines.watch(&lua).expect("a hook can be set");
        lua.load(text).set_name("@plugin.lua").exec().expect("it runs");
        let files = lines.take();
        assert_eq!(files[0].missed(), [3..=3, 7..=8]);
        assert_eq!((files[0].covered(), files[0].total()), (4, 7));
    }
}
