//! A program that is a gateway with a policy of its own in Rust, beside one in Lua.
//!
//! ```console
//! $ export NVCF_API_KEY=your-key STREAMING_FUNCTION_ID=your-function NVCF_SERVER=grpc.nvcf.nvidia.com
//! $ cargo run --example embed
//! ```

use std::sync::Arc;

use http::StatusCode;
use streamgate::app::App;
use streamgate::clock::Clock;
use streamgate::config::{Env, Role, Sources};
use streamgate::policy::{
    Answer, Decision, Exchange, Field, Kind, Native, Natives, Phase, Phases, Policy, Schema, Setting,
    Settings,
};
use streamgate::rejection::{Code, Declared, Rejection};

/// Refuses everybody while the house is closed.
pub struct OpeningHours;

/// The plugin at work in one worker.
struct Doorkeeper {
    clock: Clock,
    opens: i64,
    closes: i64,
    closed: Arc<Declared>,
}

/// What the browser is told then: a code of the plugin's own.
fn closed() -> Arc<Declared> {
    let (name, message) = ("house.closed".into(), "We are closed. Please come back tomorrow.".into());
    Arc::new(Declared { name, status: StatusCode::SERVICE_UNAVAILABLE, message })
}

impl Native for OpeningHours {
    fn name(&self) -> &str {
        "opening-hours"
    }

    fn schema(&self) -> Schema {
        let hour = |name: &str, doc: &str| Field {
            required: true,
            min: Some(0.0),
            max: Some(24.0),
            ..Field::new(name, Kind::Integer, doc)
        };
        Schema {
            summary: "Refuses everybody while the house is closed.".into(),
            phases: Phases::of(&[Phase::OnRequest]),
            fields: vec![
                hour("opens", "The hour from which requests are served, in UTC."),
                hour("closes", "The hour from which they are not."),
            ],
            rejections: vec![closed()],
            ..Schema::default()
        }
    }

    fn instantiate(&self, settings: &Settings) -> Result<Box<dyn Policy>, String> {
        let hour = |name: &str| match settings.get(name) {
            Some(Setting::Integer(it)) => *it,
            _ => unreachable!("the schema asks for both"),
        };
        let (opens, closes) = (hour("opens"), hour("closes"));
        if opens >= closes {
            return Err(format!("opens at {opens} and closes at {closes}: it would never be open"));
        }
        Ok(Box::new(Doorkeeper { clock: Clock::system(), opens, closes, closed: closed() }))
    }
}

impl Policy for Doorkeeper {
    fn phases(&self) -> Phases {
        Phases::of(&[Phase::OnRequest])
    }

    fn call<'a>(&'a self, _: Phase, _: &'a mut Exchange) -> Answer<'a> {
        let hour = (self.clock.unix() / 3600 % 24) as i64;
        let is_open = (self.opens..self.closes).contains(&hour);
        Answer::Now(Ok(if is_open {
            Decision::Continue
        } else {
            Decision::Reject(Rejection::new(Code::Declared(Arc::clone(&self.closed))))
        }))
    }
}

/// The native policy comes first, then `key-auth`, which is in Lua.
const CONFIG: &str = r#"
[listen]
address = "127.0.0.1:49100"

[[route]]
path = "/**"
chain = [
    "cors",
    { plugin = "opening-hours", opens = 0, closes = 24 },
    { plugin = "key-auth", keys = "file:tokens.toml" },
]
"#;

#[allow(clippy::print_stderr)] // where nobody reads it may end
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let natives = Natives::new().with(OpeningHours);
    let sources = Sources::new(Env::of_process()).with_file("examples/nvcf/embed.toml", CONFIG.to_owned());
    let clock = Clock::system();
    let config = App::resolve_with(&sources, Role::Gateway, &clock, &natives)?;
    tokio::runtime::Runtime::new()?.block_on(async {
        let app = App::build_with(config, clock, natives).await?;
        eprintln!("Listening on {:?}; Ctrl-C stops it.", app.addresses().gateway);
        app.run(async { drop(tokio::signal::ctrl_c().await) }).await;
        Ok(())
    })
}
