//! Reads configuration, plugins, token files and certificates again, on SIGHUP or when one of them has changed.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::app::{App, Reloader};
use crate::cli::{Failure, File};
use crate::clock::Clock;
use crate::config::{Config, Problems, Role, Tls, Value};

/// How often files are looked at. A change counts once it has been the same for two looks, so that no file is read while
/// it is being written.
const LOOK: Duration = Duration::from_secs(1);

/// Folders below a plugin folder that are looked into.
const DEPTH: usize = 3;

/// The files that a configuration was made of, and what they looked like.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Look(Vec<(PathBuf, Option<(SystemTime, u64)>)>);

/// Watches for reasons to reload, for ever.
pub(super) struct Watcher {
    hangups: Signal,
    file: File,
    reloader: Reloader,
    clock: Clock,
    loaded: Config,
    /// What the files looked like before they were read. Of no file, when one has changed meanwhile: then all are read again.
    seen: Look,
}

impl Look {
    /// The files of a configuration that is about to be loaded.
    pub(super) fn of(file: &File, config: Option<&Config>) -> Look {
        let mut paths: Vec<PathBuf> = file.config.iter().cloned().collect();
        if let Some(gateway) = config.and_then(|it| it.gateway.as_ref()) {
            let parts = &gateway.parts;
            if let Some(Tls::Files { certificate, key }) = &parts.tls {
                paths.extend([certificate.clone(), key.clone()]);
            }
            paths.extend(parts.upstream_ca.clone());
            paths.extend(parts.plugins.ca.clone());
            let settings = parts.routes.iter().flat_map(|it| &it.chain).flat_map(|it| &it.settings);
            for setting in settings {
                if let Value::Text(text) = &setting.node.value
                    && let Some(path) = text.strip_prefix("file:")
                {
                    paths.push(parts.origin.base.join(path));
                }
            }
            for folder in parts.plugins.paths.iter().chain(&parts.plugins.modules) {
                files_below(folder, DEPTH, &mut paths);
            }
        }
        paths.sort();
        Look::at(paths)
    }

    fn at(paths: Vec<PathBuf>) -> Look {
        let describe = |path: PathBuf| {
            let found = std::fs::metadata(&path).ok().and_then(|it| Some((it.modified().ok()?, it.len())));
            (path, found)
        };
        Look(paths.into_iter().map(describe).collect())
    }

    /// Whether the same files still look the same.
    pub(super) fn still_holds(&self) -> bool {
        Look::at(self.0.iter().map(|(path, _)| path.clone()).collect()) == *self
    }
}

impl Watcher {
    /// `seen` is what the files looked like before they were read.
    pub(super) fn new(
        file: File,
        loaded: Config,
        seen: Look,
        reloader: Reloader,
        clock: Clock,
    ) -> Result<Self, Failure> {
        let hangups = signal(SignalKind::hangup())
            .map_err(|it| Failure::new(format!("signals cannot be received: {it}")))?;
        Ok(Watcher { hangups, file, reloader, clock, loaded, seen })
    }

    pub(super) async fn run(mut self) {
        let mut last = self.look();
        loop {
            let watches = self.loaded.gateway.as_ref().is_some_and(|it| it.reload);
            let why = tokio::select! {
                hangup = self.hangups.recv() => match hangup {
                    Some(()) => "SIGHUP",
                    None => return,
                },
                () = self.clock.sleep(LOOK), if watches => {
                    let now = self.look();
                    let is_settled = now == std::mem::replace(&mut last, now.clone());
                    if !is_settled || now == self.seen {
                        continue;
                    }
                    "a changed file"
                }
            };
            let before = self.look();
            match self.reload() {
                Ok(warnings) => {
                    for warning in warnings {
                        tracing::warn!("{warning}.");
                    }
                    tracing::info!(why, "The configuration was loaded again.");
                }
                Err(problems) => {
                    let mistakes = format!("\n{}{}", problems.told(), problems.counted());
                    tracing::error!(
                        why,
                        %mistakes,
                        "The configuration stays as it was; the new one has mistakes."
                    );
                }
            }
            last = self.look();
            // What changed while it was read is read once more.
            self.seen = if before.still_holds() { last.clone() } else { Look::default() };
        }
    }

    fn reload(&mut self) -> Result<Vec<String>, Problems> {
        let config = self.file.sources().and_then(|it| App::resolve(&it, Role::Gateway, &self.clock));
        let config = config.inspect_err(|it| self.reloader.failed(&it.at_reload()))?;
        let warnings = self.reloader.reload(config.clone())?;
        self.loaded = config;
        Ok(warnings)
    }

    fn look(&self) -> Look {
        Look::of(&self.file, Some(&self.loaded))
    }
}

fn files_below(folder: &Path, depth: usize, found: &mut Vec<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() && depth > 0 => files_below(&entry.path(), depth - 1, found),
            Ok(kind) if !kind.is_dir() => found.push(entry.path()),
            _ => {}
        }
    }
}
