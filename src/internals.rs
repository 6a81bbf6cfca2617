//! What the benches of this repository measure and nobody else is promised.

use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use crate::clock::Clock;
use crate::config::{Env, Parts, Problems, Sources};
use crate::gateway::Loaded;
use crate::lua::{Routes, Tools};
use crate::policy::{Chain, Natives, Outcome, Phase, Watch};

/// A chain of plugins in Lua, with the VM that it runs in.
pub struct LuaChain {
    chain: Rc<Chain>,
    routes: Routes,
}

impl LuaChain {
    /// One plugin, by the texts of its two files.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn of_plugin(schema: &str, plugin: &str) -> Result<LuaChain, Problems> {
        let folder = Folder::new();
        folder.write("plugins/benched/schema.lua", schema);
        folder.write("plugins/benched/plugin.lua", plugin);
        folder.load("\"benched\"")
    }

    /// A chain as a route has it; `file:tokens.toml` is this text.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn of_chain(chain: &str, tokens: &str) -> Result<LuaChain, Problems> {
        let folder = Folder::new();
        folder.write("tokens.toml", tokens);
        folder.load(chain)
    }

    /// The memory that its VM uses, in bytes.
    pub fn memory(&self) -> usize {
        self.routes.memory()
    }

    /// The chain.
    pub fn chain(&self) -> &Chain {
        &self.chain
    }
}

/// A folder that goes when its files were read.
struct Folder(std::path::PathBuf);

impl Folder {
    fn new() -> Folder {
        Folder(std::env::temp_dir().join(format!("streamgate-bench-{}", uuid::Uuid::new_v4())))
    }

    fn write(&self, path: impl AsRef<Path>, text: &str) {
        let path = self.0.join(path);
        let folder = path.parent().expect("it is in the folder");
        std::fs::create_dir_all(folder).expect("a temporary folder can be made");
        std::fs::write(path, text).expect("a temporary file can be written");
    }

    fn load(&self, chain: &str) -> Result<LuaChain, Problems> {
        let text = format!("[[route]]\npath = \"/**\"\nchain = [{chain}]\n");
        let sources = Sources::new(Env::default()).with_file(self.0.join("streamgate.toml"), text);
        let parts: Parts = sources.parts().expect("the parts need no other settings");
        let tools = Tools::for_check(&Clock::system(), &Natives::new());
        let routes = Loaded::new(&parts, &tools)?.program.instantiate()?;
        let chain = Rc::clone(&routes.fallback().expect("there is one route").chain);
        Ok(LuaChain { chain, routes })
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0)); // it is temporary
    }
}

impl std::fmt::Debug for LuaChain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.chain.fmt(f)
    }
}

/// Looks at nothing.
#[derive(Clone, Copy, Debug)]
pub struct Unwatched;

impl Watch for Unwatched {
    type Started = ();

    fn before(&self) {}

    fn after(&self, _: &str, _: Phase, (): (), _: Outcome<'_>) {}

    fn elapsed(&self, _: Duration) -> Pin<Box<dyn Future<Output = ()> + '_>> {
        Box::pin(std::future::pending())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Exchange;

    #[test]
    fn calls_that_wait_leave_nothing_behind() {
        let schema = "return { summary = \"Counts.\", phases = { \"authenticate\" } }";
        let plugin = "local kv = require \"streamgate.kv\"\nlocal time = require \"streamgate.time\"\nreturn { authenticate = function() kv.incr \"n\" end }";
        let chain = LuaChain::of_plugin(schema, plugin).expect("a plugin");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let mut exchange = Exchange::default();
        let mut most = [0; 2];
        for most in &mut most {
            for n in 0..40_000 {
                let run = chain.chain().run(Phase::Authenticate, &mut exchange, &Unwatched);
                runtime.block_on(run).expect("nobody refuses");
                if n % 100 == 0 {
                    *most = chain.memory().max(*most);
                }
            }
        }
        assert!(most[1] < most[0] * 3 / 2, "from {} to {} bytes", most[0], most[1]);
    }
}
