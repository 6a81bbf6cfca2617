//! The state machine, asked about every order of events that matters, on a clock that is an argument.

use super::*;

const KEEPALIVE: config::Keepalive =
    config::Keepalive { interval: Duration::from_secs(10), timeout: Duration::from_secs(30) };

/// A session and the time.
struct Bench {
    session: Session,
    now: Instant,
}

impl Bench {
    fn new() -> Self {
        let now = crate::clock::Clock::paused().now();
        Bench { session: Session::new(KEEPALIVE, 7, now), now }
    }

    fn at(&mut self, seconds: u64) -> &mut Self {
        self.now += Duration::from_secs(seconds);
        self
    }

    /// What the session wants after an event, without the wait at the end.
    fn on(&mut self, event: Event) -> Vec<Action> {
        self.session.handle(self.now, event);
        let mut actions = Vec::new();
        loop {
            match self.session.poll() {
                Action::Wait(_) => return actions,
                action => actions.push(action),
            }
        }
    }

    fn pings(&mut self) -> Vec<(Leg, Control)> {
        let sent = |it| match it {
            Action::Ping(leg, control) => (leg, control),
            other => panic!("expected a ping, got {other:?}"),
        };
        self.on(Event::Tick).into_iter().map(sent).collect()
    }
}

fn finish(reason: Reason, code: u16, browser: Ending, upstream: Ending) -> Action {
    Action::Finish(End { reason, code, browser, upstream })
}

#[test]
fn an_idle_session_is_kept_alive_on_both_legs() {
    let mut it = Bench::new();
    for _ in 0..1000 {
        it.at(10);
        let pings = it.pings();
        assert_eq!(pings.iter().map(|(leg, _)| *leg).collect::<Vec<_>>(), Leg::BOTH);
        for (leg, ping) in pings {
            let pong = Control::new(Opcode::Pong, ping.payload());
            assert_eq!(
                it.on(Event::Control(leg, pong)),
                [Action::Measured(leg, Duration::ZERO)],
                "our pong is swallowed"
            );
            assert_eq!(it.on(Event::Control(leg, pong)), [], "and measured once");
        }
    }
}

#[test]
fn a_silent_peer_is_given_up_after_the_timeout_and_not_before() {
    for silent in Leg::BOTH {
        let mut it = Bench::new();
        for _ in 0..2 {
            it.at(10);
            it.pings();
            it.on(Event::Heard(silent.other()));
        }
        let end = it.at(10).on(Event::Tick);
        let reason = if silent == Leg::Browser { Reason::BrowserSilent } else { Reason::UpstreamSilent };
        assert!(
            matches!(end.last(), Some(Action::Finish(end)) if end.reason == reason && end.code == 0),
            "{silent:?}: {end:?}"
        );
    }
}

#[test]
fn a_ping_of_somebody_else_goes_through_and_so_does_its_pong() {
    let mut it = Bench::new();
    let ping = Control::new(Opcode::Ping, b"hb");
    assert_eq!(it.on(Event::Control(Leg::Upstream, ping)), [Action::Send(Leg::Browser, ping)]);
    let pong = Control::new(Opcode::Pong, b"hb");
    assert_eq!(it.on(Event::Control(Leg::Browser, pong)), [Action::Send(Leg::Upstream, pong)]);
}

#[test]
fn a_close_and_its_answer_are_passed_on_with_their_codes() {
    for leg in Leg::BOTH {
        let mut it = Bench::new();
        let close = Control::close(3010, "terminated");
        assert_eq!(it.on(Event::Control(leg, close)), [Action::Send(leg.other(), close)]);
        assert!(!it.session.accepts_data(leg) && it.session.accepts_data(leg.other()));
        let reason = if leg == Leg::Browser { Reason::ClosedByBrowser } else { Reason::ClosedByUpstream };
        let answer = Control::close(3010, "");
        assert_eq!(
            it.on(Event::Control(leg.other(), answer)),
            [Action::Send(leg, answer), finish(reason, 3010, Ending::Close, Ending::Close)]
        );
        assert_eq!(it.on(Event::Gone(leg, Loss::Fin)), [], "what comes after the end changes nothing");
    }
}

#[test]
fn a_close_that_nobody_answers_ends_after_its_time() {
    let mut it = Bench::new();
    it.on(Event::Control(Leg::Browser, Control::close(1000, "")));
    assert_eq!(it.session.poll(), Action::Wait(it.now + CLOSE_TIMEOUT));
    assert_eq!(it.at(4).on(Event::Tick), []);
    assert_eq!(
        it.at(1).on(Event::Tick),
        [finish(Reason::ClosedByBrowser, 1000, Ending::Close, Ending::Close)]
    );
}

#[test]
fn a_lost_connection_ends_as_what_it_was() {
    let check = |leg, loss, reason, browser, upstream| {
        let mut it = Bench::new();
        assert_eq!(
            it.on(Event::Gone(leg, loss)),
            [finish(reason, 0, browser, upstream)],
            "no Close frame is invented"
        );
    };
    check(Leg::Browser, Loss::Fin, Reason::BrowserLost, Ending::Reset, Ending::Close);
    check(Leg::Browser, Loss::Reset, Reason::BrowserLost, Ending::Reset, Ending::Reset);
    check(Leg::Upstream, Loss::Fin, Reason::UpstreamLost, Ending::Close, Ending::Reset);
    check(Leg::Upstream, Loss::Reset, Reason::UpstreamLost, Ending::Reset, Ending::Reset);
}

#[test]
fn whoever_breaks_the_protocol_is_told_and_the_other_too() {
    let mut it = Bench::new();
    let actions = it.on(Event::Violated(Leg::Browser, Violation { code: 1002, what: "a reserved opcode" }));
    assert_eq!(actions[0], Action::Send(Leg::Browser, Control::close(1002, "a reserved opcode")));
    assert!(matches!(&actions[1], Action::Send(Leg::Upstream, it) if it.close_code() == 1001));
    assert_eq!(actions[2], finish(Reason::BrowserViolation, 1002, Ending::Close, Ending::Close));
}

#[test]
fn a_restart_tells_the_browser_to_come_back_and_the_upstream_nothing() {
    let mut it = Bench::new();
    let actions = it.on(Event::Drain);
    assert!(matches!(&actions[0], Action::Send(Leg::Browser, it) if it.close_code() == 1012));
    assert_eq!(actions[1..], [finish(Reason::Drained, 1012, Ending::Close, Ending::Close)]);
}
