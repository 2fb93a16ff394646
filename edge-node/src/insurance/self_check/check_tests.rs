use super::*;

const START: BootTime = BootTime(5_000_000);

/// A holder whose other party is there and hears devices.
const WELL: Seen = Seen {
    is_writable: true,
    silence: Some(Millis(3_000)),
    heard_there: Some(Millis(4_000)),
    is_failing: false,
    holds: true,
    other_is_there: true,
    other_holds: false,
};
const SILENT: Seen = Seen { silence: Some(Millis(45_001)), ..WELL };
const FAILING: Seen = Seen { is_failing: true, ..WELL };

fn away(seen: Seen) -> Seen {
    Seen { holds: false, other_holds: true, ..seen }
}

const fn at(seconds: u64) -> BootTime {
    BootTime(START.0 + seconds * 1_000)
}

fn well() -> Verdict {
    Verdict { readiness: Readiness::Ready, is_fit: true, release: false, news: Vec::new() }
}

fn given_up(release: bool, news: &[News]) -> Verdict {
    Verdict { readiness: Readiness::SuccessorOnly, is_fit: false, release, news: news.to_vec() }
}

#[test]
fn a_full_disk_hands_over_whenever_the_other_is_there() {
    let mut check = Check::new(START);
    assert_eq!(check.look(&WELL, at(1)), well());
    let full = Seen { is_writable: false, ..WELL };
    let unready = |release, news: &[News]| Verdict { readiness: Readiness::Unready, is_fit: false, release, news: news.to_vec() };
    let alone = Seen { other_is_there: false, ..full };
    assert_eq!(check.look(&alone, at(2)), unready(false, &[News::Began(Finding::Disk)]));
    assert_eq!(check.look(&full, at(3)), unready(true, &[]));
    assert_eq!(check.look(&away(full), at(4)), unready(false, &[]));
    assert_eq!(check.look(&away(WELL), at(5)), Verdict { news: vec![News::Over(Finding::Disk)], ..well() });
}

#[test]
fn silent_gateways_hand_over_only_to_who_hears() {
    for heard_there in [None, Some(Millis(45_001))] {
        assert_eq!(Check::new(START).look(&Seen { heard_there, ..SILENT }, at(60)), well(), "{heard_there:?}");
    }
    assert_eq!(Check::new(START).look(&Seen { other_is_there: false, ..SILENT }, at(60)), well());
    assert_eq!(Check::new(START).look(&away(SILENT), at(60)), well(), "who does not hold takes over all the same");
    let mut check = Check::new(START);
    assert_eq!(check.look(&SILENT, at(60)), given_up(true, &[News::Began(Finding::Radio)]));
    assert_eq!(check.look(&SILENT, at(61)), given_up(true, &[]), "until it has left");
    assert_eq!(check.look(&away(SILENT), at(62)), given_up(false, &[]));
    assert_eq!(check.look(&away(WELL), at(90)), Verdict { news: vec![News::Over(Finding::Radio)], ..well() });
}

#[test]
fn gateways_have_time_to_be_heard_after_a_start() {
    let never = Seen { silence: None, ..WELL };
    let mut check = Check::new(START);
    assert_eq!(check.look(&never, at(45)), well());
    assert_eq!(check.look(&never, at(46)), given_up(true, &[News::Began(Finding::Radio)]));
}

#[test]
fn containers_that_do_not_keep_running_hand_over() {
    let mut check = Check::new(START);
    assert_eq!(check.look(&FAILING, at(60)), given_up(true, &[News::Began(Finding::Containers)]));
    assert_eq!(check.look(&away(FAILING), at(61)), given_up(false, &[]));
    assert_eq!(check.look(&away(WELL), at(62)), Verdict { news: vec![News::Over(Finding::Containers)], ..well() });
}

#[test]
fn better_badly_served_than_not_at_all() {
    let gone = |seen: &Seen| Seen { holds: false, ..*seen };
    for alone in [Seen { other_is_there: false, ..away(SILENT) }, gone(&SILENT)] {
        let mut check = Check::new(START);
        check.look(&SILENT, at(60));
        assert_eq!(check.look(&alone, at(61)), given_up(false, &[]));
        assert_eq!(check.look(&alone, at(63)), given_up(false, &[]));
        let borne = Verdict { news: vec![News::Borne(Finding::Radio)], ..well() };
        assert_eq!(check.look(&alone, at(64)), borne);
        assert_eq!(check.look(&SILENT, at(65)), well(), "held again, and kept");
    }
}

#[test]
fn custody_that_is_given_back_is_not_thrown_to_and_fro() {
    let mut check = Check::new(START);
    check.look(&FAILING, at(60));
    check.look(&away(FAILING), at(61));
    assert_eq!(check.look(&FAILING, at(62)), Verdict { news: vec![News::Borne(Finding::Containers)], ..well() });
    let moves = (63..660).filter(|second| check.look(&FAILING, at(*second)).release).count();
    assert_eq!(moves, 0, "within ten minutes");
    assert!(check.look(&FAILING, at(660)).release);
}
