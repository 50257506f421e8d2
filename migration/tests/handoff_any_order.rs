//! No order of events makes a source or a destination do harm.

use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;
use tandem_migration::handoff::{
    Arrival, ArrivalAction, ArrivalEvent as A, Departure, DepartureAction, DepartureEvent as D,
    Entry, HandoffError, Limits, Stage,
};

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// A port of the plan, or one that is not in it.
fn port() -> impl Strategy<Value = usize> {
    prop_oneof![8 => 0_usize..2, 1 => Just(usize::MAX)]
}

fn departure_event() -> impl Strategy<Value = D> {
    prop_oneof![
        3 => Just(D::Accepted),
        1 => Just(D::Vetoed("veto".into())),
        3 => Just(D::Started),
        6 => port().prop_map(D::Stopped),
        2 => port().prop_map(D::Resumed),
        2 => port().prop_map(D::Saved),
        2 => port().prop_map(D::Sent),
        6 => port().prop_map(D::Running),
        1 => port().prop_map(D::StoppedThere),
        1 => port().prop_map(D::FirstFrame),
        2 => port().prop_map(D::Flushed),
        1 => Just(D::Lost("lost".into())),
        1 => Just(D::AbortedThere("there".into())),
        2 => Just(D::Commit),
        1 => Just(D::Abort("abort".into())),
    ]
}

fn arrival_event() -> impl Strategy<Value = A> {
    prop_oneof![
        3 => Just(A::Accepted),
        1 => Just(A::Vetoed("veto".into())),
        3 => port().prop_map(A::State),
        6 => port().prop_map(A::Running),
        2 => port().prop_map(A::Stopped),
        2 => port().prop_map(A::FirstFrame),
        2 => Just(A::Commit),
        1 => Just(A::Abort("abort".into())),
    ]
}

/// An event, or the time alone, which may seem to go back.
fn steps<E: std::fmt::Debug>(
    event: impl Strategy<Value = E>,
) -> impl Strategy<Value = Vec<(Option<E>, Duration)>> {
    let now = prop_oneof![20 => 0_u64..30_000, 1 => 0_u64..5_000_000];
    vec(
        (proptest::option::weighted(0.9, event), now.prop_map(ms)),
        0..60,
    )
}

/// What holds of both after each step, given how they were before.
fn check(
    before: (Stage, usize),
    after: Stage,
    timeline: &[Entry],
    deadline: Option<Duration>,
) -> Result<(), TestCaseError> {
    let (stage, noted) = before;
    if stage.is_final() {
        prop_assert_eq!(after, stage);
        prop_assert!(timeline.len() >= noted);
    }
    prop_assert_eq!(deadline.is_none(), after.is_final());
    prop_assert!(timeline.is_sorted_by_key(|entry| entry.at));
    prop_assert!(
        timeline
            .iter()
            .all(|entry| entry.port.is_none_or(|port| port < 2))
    );
    // Each moment once for each port, however often it happens.
    prop_assert!(timeline.len() <= 16, "{timeline:?}");
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn a_departure_ends_once(steps in steps(departure_event())) {
        let (mut departure, _) = Departure::new(2, Limits::default());
        let (mut commits, mut aborts) = (0, 0);
        // Of each port, as a bystander sees them.
        let (mut stopped, mut there) = ([false; 2], [false; 2]);
        for (event, now) in steps {
            let before = (departure.stage(), departure.timeline().len());
            let at = |port: usize| port.min(1);
            if !matches!(before.0, Stage::Preparing | Stage::Committed | Stage::Aborted) {
                match event {
                    Some(D::Stopped(port)) if port < 2 => stopped[at(port)] = true,
                    Some(D::Resumed(port)) if port < 2 => stopped[at(port)] = false,
                    Some(D::Running(port)) if port < 2 => there[at(port)] = true,
                    Some(D::StoppedThere(port)) if port < 2 => there[at(port)] = false,
                    _ => {}
                }
            }
            let actions = match event.clone() {
                None => departure.tick(now),
                Some(event) => departure.on(event, now).unwrap_or_default(),
            };
            for action in &actions {
                match action {
                    DepartureAction::TellCommit => commits += 1,
                    DepartureAction::TellAbort(_) => aborts += 1,
                    // Nothing leaves this host for a VM that runs here.
                    DepartureAction::Redirect(port) => {
                        prop_assert!(stopped[*port] && there[*port]);
                    }
                    DepartureAction::AskPrepare => prop_assert!(false, "again"),
                    _ => {}
                }
            }
            let after = departure.stage();
            check(before, after, departure.timeline(), departure.deadline())?;
            prop_assert!(!before.0.is_final() || actions.is_empty());
            if event == Some(D::Abort("abort".into())) && before.0 == Stage::Committed {
                let refused = departure.on(D::Abort("again".into()), now);
                prop_assert_eq!(refused, Err(HandoffError::Committed));
            }
            prop_assert_eq!(commits, usize::from(after == Stage::Committed));
            prop_assert!(aborts <= usize::from(after == Stage::Aborted));
        }
    }

    #[test]
    fn an_event_that_comes_twice_does_nothing_the_second_time(
        steps in steps(departure_event())
    ) {
        let (mut departure, _) = Departure::new(2, Limits::default());
        for (event, now) in steps {
            let Some(event) = event else { continue };
            let _ = departure.on(event.clone(), now);
            let stage = departure.stage();
            // What has been taken down again is sent again.
            let sent = matches!(event, D::Saved(_));
            let again = departure.on(event, now).unwrap_or_default();
            prop_assert!(sent || again.is_empty(), "{again:?}");
            prop_assert_eq!(departure.stage(), stage);
        }
    }

    #[test]
    fn an_arrival_ends_once(steps in steps(arrival_event())) {
        let mut arrival = Arrival::new(2, Limits::default());
        let (mut kept, mut forgot) = (0, 0);
        let mut arrived = false;
        for (event, now) in steps {
            let before = (arrival.stage(), arrival.timeline().len());
            let first_frame = matches!(event, Some(A::FirstFrame(_)));
            let actions = match event.clone() {
                None => arrival.tick(now),
                Some(event) => arrival.on(event, now).unwrap_or_default(),
            };
            kept += actions.iter().filter(|a| **a == ArrivalAction::Keep).count();
            forgot += actions.iter().filter(|a| **a == ArrivalAction::Forget).count();
            let after = arrival.stage();
            check(before, after, arrival.timeline(), arrival.deadline())?;
            // The VM may be slow to speak.
            prop_assert!(!before.0.is_final() || first_frame || actions.is_empty());
            arrived |= after == Stage::There;
            prop_assert!(arrived || after != Stage::Committed);
            prop_assert_eq!(kept, usize::from(after == Stage::Committed));
            prop_assert!(forgot <= usize::from(after == Stage::Aborted));
            if let Some(event) = event {
                let again = arrival.on(event.clone(), now).unwrap_or_default();
                prop_assert!(matches!(event, A::State(_)) || again.is_empty(), "{again:?}");
            }
        }
    }
}
