//! What a source and a destination do in a migration.

use std::time::Duration;

use tandem_migration::handoff::{
    Arrival, ArrivalAction, ArrivalEvent, Departure, DepartureAction, DepartureEvent, HandoffError,
    Limits, Moment, Stage,
};
use tandem_migration::peer::What;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn departure(events: &[DepartureEvent]) -> (Departure, Vec<DepartureAction>) {
    let (mut departure, mut actions) = Departure::new(2, Limits::default());
    for (event, at) in events.iter().zip(1..) {
        actions.extend(departure.on(event.clone(), ms(at)).unwrap());
    }
    (departure, actions)
}

fn arrival(events: &[ArrivalEvent]) -> (Arrival, Vec<ArrivalAction>) {
    let mut arrival = Arrival::new(2, Limits::default());
    let mut actions = Vec::new();
    for (event, at) in events.iter().zip(1..) {
        actions.extend(arrival.on(event.clone(), ms(at)).unwrap());
    }
    (arrival, actions)
}

mod source {
    use super::*;
    use tandem_migration::handoff::DepartureAction as Do;
    use tandem_migration::handoff::DepartureEvent::*;

    #[test]
    fn a_vm_leaves() {
        let (mut departure, actions) = departure(&[
            Accepted,
            Started,
            Saved(0),
            Saved(1),
            Sent(0),
            Sent(1),
            Stopped(0),
            Stopped(1),
            Saved(0),
            Saved(1),
            Running(1),
            Running(0),
            Sent(0),
            Flushed(0),
        ]);
        let expected = [
            Do::AskPrepare,
            Do::SaveState(0),
            Do::SaveState(1),
            Do::SendState(0),
            Do::SendState(1),
            // Again, with the last of it.
            Do::SaveState(0),
            Do::SaveState(1),
            Do::SendState(0),
            Do::SendState(1),
            Do::Redirect(1),
            Do::Redirect(0),
        ];
        assert_eq!(actions, expected);
        assert_eq!(departure.stage(), Stage::There);
        assert_eq!(departure.on(Commit, ms(20)), Ok(vec![Do::TellCommit]));
        assert_eq!(departure.on(Commit, ms(21)), Ok(Vec::new()));
        assert_eq!(departure.on(Flushed(1), ms(22)), Ok(Vec::new()));
        let timeline: Vec<_> = departure
            .timeline()
            .iter()
            .map(|entry| (entry.at.as_millis(), entry.what, entry.port))
            .collect();
        let expected = [
            (1, Moment::Prepared, None),
            (2, Moment::Started, None),
            (6, Moment::StateSent, Some(1)),
            (7, Moment::Stopped, Some(0)),
            (8, Moment::Stopped, Some(1)),
            (9, Moment::StateSaved, Some(0)),
            (10, Moment::StateSaved, Some(1)),
            (11, Moment::RunningThere, Some(1)),
            (12, Moment::RunningThere, Some(0)),
            (13, Moment::StateSent, Some(0)),
            (14, Moment::Flushed, Some(0)),
            (20, Moment::Committed, None),
            (22, Moment::Flushed, Some(1)),
        ];
        assert_eq!(timeline, expected);
    }

    #[test]
    fn a_vm_that_leaves_unannounced_has_its_state_sent() {
        let (_, actions) = departure(&[Accepted, Stopped(1)]);
        assert_eq!(
            actions,
            [Do::AskPrepare, Do::SaveState(1), Do::SaveState(0)]
        );
    }

    #[test]
    fn an_abort_lets_go_of_what_is_held_and_is_told() {
        let tell = Do::TellAbort("why".into());
        let steps = [
            Accepted,
            Started,
            Stopped(0),
            Stopped(1),
            Running(0),
            Running(1),
        ];
        for n in 0..=steps.len() {
            let (mut departure, _) = departure(&steps[..n]);
            let actions = departure.on(Abort("why".into()), ms(50)).unwrap();
            let held = n.saturating_sub(2).min(2);
            let mut expected: Vec<Do> = (0..held).map(Do::EndHold).collect();
            expected.push(tell.clone());
            assert_eq!(actions, expected, "{n}");
            assert_eq!(departure.reason(), Some("why"));
            assert_eq!(departure.on(Abort("again".into()), ms(51)), Ok(Vec::new()));
            let late = departure.on(Commit, ms(52));
            assert_eq!(late, Err(HandoffError::Aborted("why".into())));
        }
    }

    #[test]
    fn a_veto_is_the_end_and_nothing_has_to_be_told() {
        let (mut departure, actions) = departure(&[Vetoed("no such port".into())]);
        assert_eq!(actions, [Do::AskPrepare]);
        assert_eq!(departure.stage(), Stage::Aborted);
        assert_eq!(departure.on(Accepted, ms(9)), Ok(Vec::new()));
        assert_eq!(departure.stage(), Stage::Aborted);
    }

    #[test]
    fn a_vm_that_goes_on_here_gets_its_frames() {
        let here = [Accepted, Started, Stopped(0), Resumed(0)];
        let (mut departure, actions) = departure(&here);
        assert_eq!(actions.last(), Some(&Do::EndHold(0)));
        assert_eq!(departure.stage(), Stage::Moving);
        // It stops again, and this time leaves; then its VMM takes it back.
        for (event, at) in [Stopped(0), Stopped(1), Running(0), Running(1)]
            .into_iter()
            .zip(9..)
        {
            departure.on(event, ms(at)).unwrap();
        }
        assert_eq!(departure.stage(), Stage::There);
        let actions = departure.on(Resumed(1), ms(20)).unwrap();
        assert_eq!(actions[..2], [Do::EndHold(0), Do::EndHold(1)]);
        assert!(matches!(actions[2], Do::TellAbort(_)));
    }

    #[test]
    fn commit_too_early_and_abort_too_late_are_refused() {
        let steps = [Accepted, Started, Stopped(0), Stopped(1), Running(0)];
        for n in 0..=steps.len() {
            let (mut departure, _) = departure(&steps[..n]);
            assert_eq!(departure.on(Commit, ms(50)), Err(HandoffError::NotThere));
        }
        let (mut departure, _) = departure(&steps);
        departure.on(Running(1), ms(50)).unwrap();
        departure.on(Commit, ms(51)).unwrap();
        let late = departure.on(Abort("late".into()), ms(52));
        assert_eq!(late, Err(HandoffError::Committed));
    }

    #[test]
    fn a_destination_that_is_lost_costs_nothing_before_the_vm_has_stopped() {
        let lost = || Lost("no route".into());
        let told = Some(Do::TellAbort("no route".into()));
        for steps in [vec![], vec![Accepted], vec![Accepted, Started]] {
            let (departure, actions) = departure(&[steps, vec![lost()]].concat());
            assert_eq!(departure.stage(), Stage::Aborted);
            assert_eq!(actions.last().cloned(), told);
        }
        let (departure, _) = departure(&[Accepted, Started, Stopped(0), lost()]);
        assert_eq!(departure.stage(), Stage::Moving);
    }

    #[test]
    fn every_stage_ends_in_time() {
        let limits = Limits::default();
        let steps = [
            Accepted,
            Started,
            Stopped(0),
            Stopped(1),
            Running(0),
            Running(1),
        ];
        let deadlines = [
            limits.preparing,
            ms(1) + limits.prepared,
            ms(2) + limits.moving,
            ms(2) + limits.moving,
            ms(4) + limits.stopped,
            ms(4) + limits.stopped,
            ms(6) + limits.there,
        ];
        for (n, deadline) in deadlines.into_iter().enumerate() {
            let (mut departure, _) = departure(&steps[..n]);
            assert_eq!(departure.deadline(), Some(deadline), "{n}");
            assert_eq!(departure.tick(deadline - ms(1)), []);
            let actions = departure.tick(deadline);
            // What runs there stays there.
            match n {
                6 => assert_eq!(actions, [Do::TellCommit]),
                _ => assert!(matches!(actions.last(), Some(Do::TellAbort(_))), "{n}"),
            }
            assert_eq!(departure.deadline(), None);
            assert_eq!(departure.tick(Duration::MAX), []);
        }
    }
}

mod destination {
    use super::*;
    use tandem_migration::handoff::ArrivalAction as Do;
    use tandem_migration::handoff::ArrivalEvent::*;

    fn report(port: usize, what: What) -> Do {
        let (port, reason) = (Some(port), None);
        Do::Report { port, what, reason }
    }

    #[test]
    fn a_vm_comes() {
        let (mut arrival, actions) = arrival(&[
            Accepted,
            State(0),
            State(1),
            State(1),
            Running(0),
            Running(1),
            State(1),
            FirstFrame(1),
            FirstFrame(1),
        ]);
        let expected = [
            Do::Load(0),
            Do::Load(1),
            // What came later is what counts; what comes when the rings run already is too late.
            Do::Load(1),
            report(0, What::Running),
            report(1, What::Running),
            report(1, What::FirstFrame),
        ];
        assert_eq!(actions, expected);
        assert_eq!(arrival.stage(), Stage::There);
        assert_eq!(arrival.on(Commit, ms(20)), Ok(vec![Do::Keep]));
        assert_eq!(arrival.on(Commit, ms(21)), Ok(Vec::new()));
        let late = arrival.on(Abort("late".into()), ms(22));
        assert_eq!(late, Err(HandoffError::Committed));
    }

    #[test]
    fn a_commit_counts_though_the_rings_have_stopped_since() {
        let (mut arrival, actions) = arrival(&[Accepted, Running(0), Running(1), Stopped(0)]);
        assert_eq!(actions.last(), Some(&report(0, What::Stopped)));
        assert_eq!(arrival.stage(), Stage::Moving);
        assert_eq!(arrival.on(Commit, ms(9)), Ok(vec![Do::Keep]));
    }

    #[test]
    fn a_veto_changes_nothing_and_an_abort_undoes_and_is_reported() {
        let (veto, actions) = arrival(&[Vetoed("no such port".into())]);
        assert_eq!((veto.stage(), actions), (Stage::Aborted, Vec::new()));
        let steps = [Accepted, State(0), Running(0), Running(1)];
        for n in 0..=steps.len() {
            let (mut arrival, _) = arrival(&steps[..n]);
            let actions = arrival.on(Abort("why".into()), ms(9)).unwrap();
            let (port, what, reason) = (None, What::Aborted, Some("why".into()));
            let reported = Do::Report { port, what, reason };
            assert_eq!(actions, [Do::Forget, reported], "{n}");
            let late = arrival.on(Commit, ms(10));
            assert_eq!(late, Err(HandoffError::Aborted("why".into())));
        }
    }

    #[test]
    fn every_stage_ends_in_time() {
        let limits = Limits::default();
        let steps = [Accepted, State(0), Running(0), Running(1)];
        let deadlines = [
            limits.preparing,
            ms(1) + limits.prepared,
            ms(2) + limits.moving,
            ms(2) + limits.moving,
            ms(4) + limits.there,
        ];
        for (n, deadline) in deadlines.into_iter().enumerate() {
            let (mut arrival, _) = arrival(&steps[..n]);
            assert_eq!(arrival.deadline(), Some(deadline), "{n}");
            assert_eq!(arrival.tick(deadline - ms(1)), []);
            let actions = arrival.tick(deadline);
            let expected = if n == 4 { Do::Keep } else { Do::Forget };
            assert_eq!(actions.first(), Some(&expected), "{n}");
            assert_eq!(arrival.deadline(), None);
        }
    }
}
