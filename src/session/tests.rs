//! The state machine, asked about every order of events that matters, on a clock that is an argument.

use super::*;

const KEEPALIVE: config::Keepalive =
    config::Keepalive { interval: Duration::from_secs(10), timeout: Duration::from_secs(30) };

const LIMITS: Limits =
    Limits { keepalive: KEEPALIVE, window: None, max_age: None, max_idle: None, tick: None };

/// A session and the time.
struct Bench {
    session: Session,
    now: Instant,
}

impl Bench {
    fn new() -> Self {
        Bench::within(LIMITS)
    }

    fn within(limits: Limits) -> Self {
        let now = crate::clock::Clock::paused().now();
        Bench { session: Session::new(limits, 7, now), now }
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
fn an_answer_that_is_late_twice_is_still_ours() {
    let mut it = Bench::new();
    let mut ask = |seconds| it.at(seconds).pings()[0].1;
    let (first, repeated) = (ask(10), ask(10));
    assert_eq!(first, repeated, "a ping that was not answered is asked again");
    let pong = Control::new(Opcode::Pong, first.payload());
    assert_eq!(
        it.on(Event::Control(Leg::Browser, pong)),
        [Action::Measured(Leg::Browser, Duration::from_secs(10))]
    );
    it.on(Event::Heard(Leg::Upstream));
    assert_ne!(it.at(10).pings()[0].1, repeated);
    assert_eq!(it.on(Event::Control(Leg::Browser, pong)), [], "it is swallowed, and measured once");
}

#[test]
fn a_process_that_was_stopped_gives_nobody_up() {
    let mut it = Bench::new();
    assert_eq!(it.at(1000).pings().len(), 2, "they are asked first");
    it.on(Event::Heard(Leg::Upstream));
    assert_eq!(it.at(10).pings().len(), 2);
    it.on(Event::Heard(Leg::Upstream));
    let end = it.at(10).on(Event::Tick);
    assert!(
        matches!(end.last(), Some(Action::Finish(end)) if end.reason == Reason::BrowserSilent),
        "{end:?}"
    );
}

#[test]
fn a_ping_is_answered_for_a_browser_that_does_not() {
    let (ping, pong) = (Control::new(Opcode::Ping, b"hb"), Control::new(Opcode::Pong, b"hb"));
    let resumable = Limits { window: Some(Duration::from_secs(60)), ..LIMITS };
    let mut it = Bench::within(resumable);
    it.on(Event::Control(Leg::Upstream, ping));
    assert_eq!(it.at(4).on(Event::Tick), [], "there is no hurry");
    assert_eq!(it.at(6).on(Event::Tick)[0], Action::Send(Leg::Upstream, pong));
    assert!(!it.at(10).on(Event::Tick).contains(&Action::Send(Leg::Upstream, pong)), "once");
    // When it is lost, and not when it has answered itself.
    for has_answered in [false, true] {
        let mut it = Bench::within(resumable);
        it.on(Event::Control(Leg::Upstream, ping));
        if has_answered {
            assert_eq!(it.on(Event::Control(Leg::Browser, pong)), [Action::Send(Leg::Upstream, pong)]);
        }
        let parks = it.on(Event::Gone(Leg::Browser, Loss::Reset));
        assert_eq!(parks.contains(&Action::Send(Leg::Upstream, pong)), !has_answered);
    }
}

#[test]
fn nobody_is_sent_two_close_frames() {
    let mut it = Bench::new();
    let close = Control::close(1000, "");
    assert_eq!(it.on(Event::Control(Leg::Browser, close)), [Action::Send(Leg::Upstream, close)]);
    let end = it.on(Event::Stop(Stop::Asked));
    assert!(!end.iter().any(|it| matches!(it, Action::Send(Leg::Upstream, _))), "{end:?}");
    assert!(matches!(end[0], Action::Send(Leg::Browser, _)), "it is owed an answer");
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
fn a_restart_waits_and_then_tells_the_browser_to_come_back_and_the_upstream_nothing() {
    let mut it = Bench::within(RESUMABLE);
    let until = it.now + Duration::from_secs(8);
    assert_eq!(it.on(Event::Drain(until)), []);
    assert_eq!(it.session.poll(), Action::Wait(until));
    assert!(it.session.accepts_data(Leg::Browser), "what is under way may finish");
    let actions = it.at(8).on(Event::Tick);
    assert!(matches!(&actions[0], Action::Send(Leg::Browser, it) if it.close_code() == 1012));
    assert_eq!(actions[1..], [finish(Reason::Drained, 1012, Ending::Close, Ending::Close)]);
    // Whoever leaves meanwhile is not waited for, and nobody is let in.
    let mut it = Bench::within(RESUMABLE);
    it.on(Event::Drain(until));
    assert!(!it.session.takes_browsers());
    let actions = it.on(Event::Gone(Leg::Browser, Loss::Reset));
    assert_eq!(actions, [finish(Reason::BrowserLost, 0, Ending::Reset, Ending::Reset)]);
}

const RESUMABLE: Limits = Limits { window: Some(Duration::from_secs(60)), ..LIMITS };

#[test]
fn a_lost_browser_is_waited_for_and_its_upstream_kept_alive() {
    for loss in [Loss::Fin, Loss::Reset] {
        let mut it = Bench::within(RESUMABLE);
        assert_eq!(it.on(Event::Gone(Leg::Browser, loss)), [Action::Park(loss)]);
        assert!(it.session.is_parked() && it.session.takes_browsers());
        let ping = Control::new(Opcode::Ping, b"hb");
        let pong = Control::new(Opcode::Pong, b"hb");
        assert_eq!(it.on(Event::Control(Leg::Upstream, ping)), [Action::Send(Leg::Upstream, pong)]);
        let pings = it.at(10).pings();
        assert_eq!(pings.iter().map(|(leg, _)| *leg).collect::<Vec<_>>(), [Leg::Upstream]);
        assert_eq!(it.at(5).on(Event::Attached), []);
        assert_eq!(it.at(9).pings().len(), 1, "the browser's pings begin anew");
        it.on(Event::Heard(Leg::Upstream));
        assert_eq!(it.at(1).pings().len(), 1);
    }
}

#[test]
fn whoever_does_not_come_back_in_time_is_not_waited_for() {
    let mut it = Bench::within(RESUMABLE);
    it.on(Event::Gone(Leg::Browser, Loss::Reset));
    for _ in 0..5 {
        it.at(10).pings();
        it.on(Event::Heard(Leg::Upstream));
    }
    assert_eq!(
        it.at(10).on(Event::Tick),
        [finish(Reason::Expired, 0, Ending::Reset, Ending::Reset)],
        "no Close frame is invented"
    );
    assert!(!it.session.takes_browsers());
}

#[test]
fn a_silent_browser_is_parked_and_a_torn_one_is_not() {
    let mut it = Bench::within(RESUMABLE);
    for _ in 0..2 {
        it.at(10).pings();
        it.on(Event::Heard(Leg::Upstream));
    }
    let actions = it.at(10).on(Event::Tick);
    assert_eq!(actions[0], Action::Park(Loss::Silence));
    assert_eq!(
        it.on(Event::Torn),
        [finish(Reason::BrowserSilent, 0, Ending::Reset, Ending::Close)],
        "what was under way cannot be completed"
    );
}

#[test]
fn an_end_while_the_browser_is_away_is_one() {
    let parked = || {
        let mut it = Bench::within(RESUMABLE);
        it.on(Event::Gone(Leg::Browser, Loss::Fin));
        it
    };
    let close = Control::close(4000, "over");
    assert_eq!(
        parked().on(Event::Control(Leg::Upstream, close)),
        [
            Action::Send(Leg::Upstream, Control::close(4000, "")),
            finish(Reason::ClosedByUpstream, 4000, Ending::Close, Ending::Close)
        ]
    );
    assert_eq!(
        parked().on(Event::Gone(Leg::Upstream, Loss::Reset)),
        [finish(Reason::UpstreamLost, 0, Ending::Reset, Ending::Reset)]
    );
    assert_eq!(
        {
            let mut it = parked();
            let until = it.now + Duration::from_secs(8);
            it.on(Event::Drain(until))
        },
        [finish(Reason::Drained, 0, Ending::Reset, Ending::Close)]
    );
    let actions = parked().on(Event::Overflowed);
    assert!(matches!(&actions[0], Action::Send(Leg::Upstream, it) if it.close_code() == 1009));
    assert_eq!(actions[1], finish(Reason::Overflowed, 0, Ending::Close, Ending::Close));
}

#[test]
fn a_close_ends_a_session_for_good() {
    let mut it = Bench::within(RESUMABLE);
    it.on(Event::Control(Leg::Browser, Control::close(1001, "")));
    assert!(!it.session.takes_browsers());
    assert_eq!(
        it.on(Event::Gone(Leg::Browser, Loss::Fin)),
        [finish(Reason::ClosedByBrowser, 1001, Ending::Close, Ending::Close)]
    );
}

#[test]
fn an_end_that_was_asked_for_is_told_to_both() {
    let mut it = Bench::within(RESUMABLE);
    let actions = it.on(Event::Stop(Stop::Asked));
    assert!(matches!(&actions[0], Action::Send(Leg::Browser, it) if it.close_code() == 3010));
    assert!(matches!(&actions[1], Action::Send(Leg::Upstream, it) if it.close_code() == 1000));
    let mut it = Bench::within(RESUMABLE);
    let actions = it.on(Event::Stop(Stop::Replaced));
    assert!(matches!(&actions[0], Action::Send(Leg::Browser, it) if it.close_code() == 3005));
    assert_eq!(actions[1], finish(Reason::Replaced, 3005, Ending::Close, Ending::Close));
}

#[test]
fn age_and_idleness_end_a_session() {
    let limits = Limits {
        keepalive: config::Keepalive {
            interval: Duration::from_secs(500),
            timeout: Duration::from_secs(999),
        },
        max_age: Some(Duration::from_secs(100)),
        max_idle: Some(Duration::from_secs(30)),
        ..LIMITS
    };
    let ended = |actions: Vec<Action>| match actions.last() {
        Some(Action::Finish(end)) => Some(end.reason),
        _ => None,
    };
    let mut it = Bench::within(limits);
    for _ in 0..4 {
        assert_eq!(it.at(24).on(Event::Tick), []);
        it.on(Event::Moved);
    }
    assert_eq!(it.session.poll(), Action::Wait(it.now + Duration::from_secs(4)));
    assert_eq!(ended(it.at(4).on(Event::Tick)), Some(Reason::TooOld));
    let mut it = Bench::within(limits);
    it.on(Event::Heard(Leg::Browser));
    assert_eq!(ended(it.at(30).on(Event::Tick)), Some(Reason::Idle), "a pong is no message");
}

#[test]
fn policies_are_asked_again_and_may_end_a_session() {
    let tick = Duration::from_secs(30);
    let window = Some(Duration::from_secs(600));
    let mut it = Bench::within(Limits { tick: Some(tick), window, ..LIMITS });
    let is_asked = |it: &mut Bench, seconds: u64| {
        it.at(seconds).on(Event::Heard(Leg::Upstream));
        it.on(Event::Heard(Leg::Browser));
        it.on(Event::Tick).contains(&Action::Ask)
    };
    assert!(!is_asked(&mut it, 29));
    assert!(is_asked(&mut it, 1) && !is_asked(&mut it, 0), "once each time");
    it.on(Event::Gone(Leg::Browser, Loss::Reset));
    assert!(!is_asked(&mut it, 29) && is_asked(&mut it, 1), "also about a browser that is away");
    let actions = it.on(Event::Refused(Control::close(3000, "the token has expired")));
    assert!(matches!(&actions[0], Action::Send(Leg::Browser, it) if it.close_code() == 3000));
    assert!(matches!(&actions[1], Action::Send(Leg::Upstream, it) if it.close_code() == 1000));
    assert_eq!(actions[2], finish(Reason::Refused, 3000, Ending::Close, Ending::Close));
}
