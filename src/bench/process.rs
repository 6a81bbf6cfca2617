//! What the kernel accounts to a process and its descendants.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

/// The account of a process under test. Its descendants count with it: the workers of some gateways are processes.
pub(super) struct Meter {
    pid: u32,
    /// CPU time of each thread when it was last seen. One that has ended keeps its own.
    threads: HashMap<(u32, u64), Duration>,
    /// CPU time of threads whose number is another one's by now.
    earlier: Duration,
}

/// What a process had used at some time.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Usage {
    /// CPU time since it was first asked for. `None`: nobody knows.
    pub(super) cpu: Option<Duration>,
    /// Memory in bytes: its own, and its share of what it shares.
    pub(super) pss: Option<u64>,
}

impl Meter {
    /// # Errors
    /// There is no such process, or no `/proc`.
    pub(super) fn new(pid: u32) -> Result<Meter, String> {
        if !std::path::Path::new("/proc/self/stat").exists() {
            return Err("this system has no /proc, so no process can be measured".into());
        }
        if stat(pid).is_none() {
            return Err(format!("there is no process {pid}"));
        }
        Ok(Meter { pid, threads: HashMap::new(), earlier: Duration::ZERO })
    }

    /// What it has used so far.
    pub(super) fn read(&mut self) -> Usage {
        if stat(self.pid).is_none() {
            return Usage::default(); // it has ended
        }
        let family = family(self.pid);
        let mut is_known = false;
        for pid in &family {
            for (thread, used) in threads(*pid) {
                is_known = true;
                let before = self.threads.insert((*pid, thread), used);
                self.earlier += before.filter(|it| *it > used).unwrap_or_default();
            }
        }
        let cpu = self.earlier + self.threads.values().sum::<Duration>();
        let pss: Option<u64> =
            family.iter().filter_map(|it| pss(*it)).fold(None, |sum, it| Some(sum.unwrap_or(0) + it));
        Usage { cpu: is_known.then_some(cpu), pss }
    }
}

/// A process and its descendants.
fn family(pid: u32) -> Vec<u32> {
    let mut parents = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        if let Some(child) = entry.file_name().to_str().and_then(|it| it.parse().ok())
            && let Some(stat) = stat(child)
        {
            parents.push((child, stat.parent));
        }
    }
    let mut found = vec![pid];
    let mut known = HashSet::from([pid]);
    let mut next = 0;
    while let Some(&parent) = found.get(next) {
        for (child, _) in parents.iter().filter(|it| it.1 == parent) {
            if known.insert(*child) {
                found.push(*child);
            }
        }
        next += 1;
    }
    found
}

/// CPU time of each thread: by the scheduler to the nanosecond, otherwise that of the whole process in ticks.
fn threads(pid: u32) -> Vec<(u64, Duration)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
        let thread = entry.file_name().to_str().and_then(|it| it.parse().ok());
        let used = std::fs::read_to_string(entry.path().join("schedstat")).ok();
        let used = used.and_then(|it| it.split(' ').next()?.parse().ok());
        if let (Some(thread), Some(used)) = (thread, used) {
            found.push((thread, Duration::from_nanos(used)));
        }
    }
    if found.is_empty()
        && let Some(stat) = stat(pid)
    {
        let per_second = rustix::param::clock_ticks_per_second().max(1);
        found.push((0, Duration::from_secs_f64(stat.ticks as f64 / per_second as f64)));
    }
    found
}

struct Stat {
    parent: u32,
    ticks: u64,
}

/// The parent of a process and the ticks that it has run (proc_pid_stat(5): fields 4, 14, 15). Its name stands in
/// brackets before them and may have any of these characters.
fn stat(pid: u32) -> Option<Stat> {
    let text = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
    let text = String::from_utf8_lossy(&text);
    let fields: Vec<&str> = text.rsplit_once(") ")?.1.split(' ').collect();
    let number = |idx: usize| fields.get(idx)?.parse::<u64>().ok();
    Some(Stat { parent: u32::try_from(number(1)?).ok()?, ticks: number(11)? + number(12)? })
}

/// Without the pages of files: they do not grow with sessions, and a gateway may share its program with the bench.
fn pss(pid: u32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let bytes = |name: &str| {
        let line = text.lines().find_map(|it| it.strip_prefix(name))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|it| it * 1024)
    };
    match (bytes("Pss_Anon:"), bytes("Pss_Shmem:")) {
        (Some(own), Some(shared)) => Some(own + shared),
        _ => bytes("Pss:"), // an older kernel
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_accounted_with_its_threads_and_children() {
        let mut meter = Meter::new(std::process::id()).expect("this process is there");
        let first = meter.read();
        assert!(first.pss.is_some_and(|it| it > 100_000), "{first:?}");
        let began = first.cpu.expect("it is known");
        // A thread that has ended keeps what it has used, as far as it was seen.
        let (seen, is_seen) = std::sync::mpsc::channel::<()>();
        let (burnt, is_burnt) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            burn();
            burnt.send(()).expect("the test waits");
            is_seen.recv().ok();
        });
        is_burnt.recv().expect("the thread burns");
        let with_thread = meter.read().cpu.expect("it is known");
        assert!(with_thread > began, "{with_thread:?} after {began:?}");
        seen.send(()).expect("the thread waits");
        thread.join().expect("it does not panic");
        assert!(meter.read().cpu.expect("it is known") >= with_thread);

        let mut child =
            std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().expect("cat");
        assert!(family(std::process::id()).contains(&child.id()));
        drop(child.stdin.take());
        child.wait().expect("it ends");
        assert!(!family(std::process::id()).contains(&child.id()));
        assert!(Meter::new(child.id()).is_err_and(|it| it.contains(&child.id().to_string())));
    }

    fn burn() {
        let before = threads(std::process::id()).iter().map(|it| it.1).sum::<Duration>();
        while threads(std::process::id()).iter().map(|it| it.1).sum::<Duration>()
            <= before + Duration::from_millis(20)
        {}
    }
}
