//! The page in a real browser: a picture that went the whole way, and plain words when something is wrong.

use std::net::SocketAddr;
use std::time::Duration;

use streamgate::clock::Clock;
use streamgate::config::{Env, Role, Sources};

use crate::support::chromium::{Chromium, Page};
use crate::support::process::Process;
use crate::support::proxy::Network;
use crate::support::{Client, Folder, Gateway, PATIENCE, gateway};

const FRAMES: &str = "Number(document.querySelector('#video').dataset.framesDecoded ?? 0)";

fn reads(id: &str, text: &str) -> String {
    format!("document.querySelector('#{id}').textContent.includes({text:?})")
}

/// The demo, and the address that it prints.
async fn demo(args: &[&str]) -> (Process, String) {
    let args = [&["demo", "--listen", "127.0.0.1:0", "--token", "hello"], args].concat();
    let process = Process::start(&args, &[]);
    let line = process.stdout.line_with("Open ").await;
    (process, line.trim_start_matches("Open").trim().to_owned())
}

/// The address of the demo's control server.
async fn control(process: &Process) -> SocketAddr {
    let told = process.stdout.line_with("control http://").await;
    let address = told.split("http://").nth(1).and_then(|it| it.split(',').next());
    address.and_then(|it| it.parse().ok()).unwrap_or_else(|| panic!("no address in {told}"))
}

/// Waits until the streaming server's metrics have a line.
async fn has(control: SocketAddr, line: &str) {
    let began = std::time::Instant::now();
    loop {
        let mut client = Client::connect(control).await;
        client.request("GET", "/metrics", &[], b"").await;
        let metrics = client.answer().await.text();
        if metrics.contains(line) {
            return;
        }
        assert!(began.elapsed() < PATIENCE, "{line} is missing in:\n{metrics}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Waits until the picture moves.
async fn streams(browser: &mut Chromium, page: &Page) {
    browser.until(page, &reads("state", "Streaming")).await;
    browser.until(page, &format!("{FRAMES} > 5")).await;
    let so_far = browser.value(page, FRAMES).await;
    browser.until(page, &format!("{FRAMES} > {so_far} + 20")).await;
    browser.until(page, "document.querySelector('#cover').hidden").await;
}

async fn whole_way(args: &[&str], scheme: &str) {
    let (mut process, url) = demo(args).await;
    assert!(url.starts_with(scheme) && url.ends_with("#token=hello"), "{url}");
    let mut browser = Chromium::start().await;
    let page = browser.open(&url).await;
    streams(&mut browser, &page).await;
    // The picture is the function's, not a still: two moments of it differ.
    let pixels = "(async () => {
        const canvas = document.createElement('canvas');
        [canvas.width, canvas.height] = [64, 36];
        const shot = () => {
            canvas.getContext('2d').drawImage(document.querySelector('#video'), 0, 0, 64, 36);
            return canvas.getContext('2d').getImageData(0, 0, 64, 36).data.join();
        };
        const first = shot();
        while (shot() === first) await new Promise((next) => requestAnimationFrame(next));
        return new Set(first.split(',')).size;
    })()";
    let n_shades = browser.value(&page, pixels).await.as_u64().expect("a number");
    assert!(n_shades > 20, "a picture has more than {n_shades} shades");

    let center = browser
        .value(&page, "(() => { const it = document.querySelector('#stage').getBoundingClientRect(); return [it.x + it.width / 2, it.y + it.height / 2]; })()")
        .await;
    let [x, y] = [0, 1].map(|idx| center[idx].as_f64().expect("a number"));
    browser.click(&page, x, y).await;
    browser.until(&page, &reads("echo-last", "up came back")).await;
    browser.press(&page, "k").await;
    browser.until(&page, &reads("echo-last", "key-up k came back")).await;
    for measured in ["rtt", "fps", "bitrate", "echo-time"] {
        // A round trip on one machine may be "<1".
        browser
            .until(&page, &format!("/[1-9]/.test(document.querySelector('#{measured}').textContent)"))
            .await;
    }
    // Another viewer on the same media port.
    let other = browser.open(&url).await;
    streams(&mut browser, &other).await;
    browser.value(&other, "document.querySelector('#end').click()").await;
    browser.until(&other, &reads("state", "Ended")).await;

    // A connection that is left as if it were lost: the page comes back into its session, and the picture goes on.
    browser.value(&page, "document.querySelector('#cut').click()").await;
    browser.until(&page, &reads("log", "The connection was cut by hand.")).await;
    browser.until(&page, &reads("log", "Back after")).await;
    browser.until(&page, &reads("state", "Streaming")).await;
    let so_far = browser.value(&page, FRAMES).await;
    browser.until(&page, &format!("{FRAMES} > {so_far} + 20")).await;
    browser.press(&page, "j").await;
    browser.until(&page, &reads("echo-last", "key-up j came back")).await;
    let n_hellos = "document.querySelector('#log').textContent.split('has a session for you').length - 1";
    assert_eq!(browser.value(&page, n_hellos).await, 1, "the function has noticed nothing");
    browser.value(&page, "document.querySelector('#end').click()").await;
    browser.until(&page, &reads("cover-title", "The session has ended")).await;
    process.signal("INT").await;
    assert!(process.ended().await.success(), "{}", process.stderr.text());
    assert_eq!(process.stderr.text(), "", "a demo that works has nothing to say");
}

#[tokio::test]
async fn a_picture_goes_the_whole_way_and_input_comes_back() {
    whole_way(&[], "http://127.0.0.1:").await;
}

#[tokio::test]
async fn the_same_with_tls() {
    whole_way(&["--tls"], "https://127.0.0.1:").await;
}

#[tokio::test]
async fn a_network_that_is_cut_and_restored_costs_no_picture_and_no_session() {
    let (process, url) = demo(&[]).await;
    let control = control(&process).await;
    let gateway = url.trim_start_matches("http://").split('/').next().expect("an address").parse();
    let network = Network::to(gateway.expect("an address")).await;
    let mut browser = Chromium::start().await;
    let page = browser.open(&format!("http://{}/#token=hello", network.address)).await;
    streams(&mut browser, &page).await;
    for _ in 0..3 {
        network.cut();
        browser.until(&page, &reads("state", "Coming back")).await;
        let so_far = browser.value(&page, FRAMES).await;
        browser.until(&page, &format!("{FRAMES} > {so_far} + 10")).await; // media has a way of its own
        network.restore();
        browser.until(&page, &reads("state", "Streaming")).await;
        browser.until(&page, "document.querySelector('#cover').hidden").await;
    }
    for line in [
        "streamgate_streaming_sessions{state=\"active\"} 1\n",
        "streamgate_streaming_session_setup_seconds_count{phase=\"connected\"} 1\n",
        "streamgate_streaming_resumes_total 0\n",
    ] {
        has(control, line).await;
    }
}

#[tokio::test]
async fn a_page_that_is_loaded_again_comes_back_into_its_session() {
    let (process, url) = demo(&[]).await;
    let control = control(&process).await;
    let mut browser = Chromium::start().await;
    let page = browser.open(&url).await;
    streams(&mut browser, &page).await;
    for n_loads in 1..=2 {
        browser.reload(&page).await;
        streams(&mut browser, &page).await;
        browser.until(&page, &reads("log", "The function has kept the session.")).await;
        has(control, &format!("streamgate_streaming_resumes_total {n_loads}\n")).await;
    }
    has(control, "streamgate_streaming_sessions{state=\"active\"} 1\n").await;
    has(control, "streamgate_streaming_sessions{state=\"detached\"} 0\n").await;
    for stage in ["answer", "connected"] {
        let once = format!("streamgate_streaming_session_setup_seconds_count{{phase=\"{stage}\"}} 1\n");
        has(control, &once).await;
    }
    // Another tab is another session, and does not disturb this one.
    let other = browser.open(&url).await;
    streams(&mut browser, &other).await;
    has(control, "streamgate_streaming_sessions{state=\"active\"} 2\n").await;
    browser.until(&page, &reads("state", "Streaming")).await;
    // What was ended on purpose is over at once, and a page that is loaded again begins anew.
    browser.value(&page, "document.querySelector('#end').click()").await;
    browser.until(&page, &reads("state", "Ended")).await;
    has(control, "streamgate_streaming_sessions_total{result=\"closed\"} 1\n").await;
    browser.reload(&page).await;
    streams(&mut browser, &page).await;
    browser.until(&page, &reads("log", "The function has a session for you.")).await;
    has(control, "streamgate_streaming_resumes_total 2\n").await;
}

#[tokio::test]
async fn a_wrong_token_is_told_and_the_right_one_lets_in() {
    let (mut process, url) = demo(&[]).await;
    let mut browser = Chromium::start().await;
    let page = browser.open(&url.replace("hello", "wrong")).await;
    browser.until(&page, &reads("cover-title", "Wrong access token")).await;
    browser.until(&page, &reads("cover-text", "does not know this token")).await;
    browser.until(&page, &reads("log", "Wrong access token")).await;
    let bare = browser.open(url.split('#').next().expect("an address")).await;
    browser.until(&bare, &reads("cover-title", "No access token")).await;
    browser.until(&bare, "document.activeElement.id === 'token'").await;
    for key in ["h", "e", "l", "l", "o"] {
        browser.press(&bare, key).await;
    }
    browser.value(&bare, "document.querySelector('#access').requestSubmit()").await;
    streams(&mut browser, &bare).await;
    process.signal("TERM").await;
    browser.until(&bare, &reads("state", "Coming back")).await;
    assert!(process.ended().await.success());
}

#[tokio::test]
async fn a_function_that_does_not_exist_is_told() {
    let door =
        Sources::new(Env::default()).with_file("door.toml", "[frontdoor]\naddress = \"127.0.0.1:0\"\n");
    let door = door.resolve(Role::FrontDoor).expect("valid");
    let door = gateway::run(move || door, Clock::system(), Folder::new()).await.expect("a front door");
    let server = format!("http://{}", door.addresses.frontdoor.expect("it has one"));
    let gateway = Gateway::before(server).listen("page = true").start().await;
    let mut browser = Chromium::start().await;
    let page = browser.open(&format!("http://{}/", gateway.addresses.gateway.expect("it has one"))).await;
    browser.until(&page, &reads("cover-title", "No such function")).await;
    browser.until(&page, "!document.querySelector('#again').hidden").await;
    drop(door);
    browser.value(&page, "document.querySelector('#again').click()").await;
    browser.until(&page, &reads("cover-title", "The streaming service is away")).await;
}

#[tokio::test]
async fn a_missing_media_path_is_told() {
    let clock = Clock::paused();
    // Nobody answers at an address of TEST-NET-1 (RFC 5737).
    let file =
        "[streaming]\ncontrol = \"127.0.0.1:0\"\nsignaling = \"127.0.0.1:0\"\nadvertise = [\"192.0.2.1\"]\n";
    let config =
        Sources::new(Env::default()).with_file("stream.toml", file).resolve(Role::Stream).expect("valid");
    let server =
        gateway::run(move || config, clock.clone(), Folder::new()).await.expect("a streaming server");
    let upstream = format!("http://{}", server.addresses.signaling.expect("it has one"));
    let gateway = Gateway::before(upstream).listen("page = true").start().await;
    let mut browser = Chromium::start().await;
    let page = browser.open(&format!("http://{}/", gateway.addresses.gateway.expect("it has one"))).await;
    browser.until(&page, &reads("state", "Finding a media path")).await;
    server.until_metric("streamgate_streaming_session_setup_seconds_count", &[("phase", "answer")], 1.0);
    clock.advance(Duration::from_secs(15));
    browser.until(&page, &reads("cover-title", "No media path")).await;
    browser.until(&page, &reads("cover-text", "UDP")).await;
}
