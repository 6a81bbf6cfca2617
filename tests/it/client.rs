//! The page's client where connections break: its decisions, by a clock that stands still.

use std::path::Path;

use tokio::process::Command;

use crate::support::soon;

#[tokio::test]
async fn the_client_comes_back_and_knows_when_to_give_up() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/client.mjs");
    let node = Command::new("node").arg("--test").arg(script).kill_on_drop(true).output();
    let output = soon("the end of the script", node).await.expect("node is installed by `make test`");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}
