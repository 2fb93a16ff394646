//! Runs a sketch from power on to power cut, again and again over one EEPROM, and judges what it would have sent.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

/// 21.5 degrees and a closed contact, as the stand-ins of the sensors say, in Cayenne LPP.
const PAYLOAD: &str = "016700d7020001";
/// The keys of `keys.h`; EUIs as LMIC wants them, least significant byte first.
const SESSION: &str =
    "session dev_addr=26011bda nwk_s_key=000102030405060708090a0b0c0d0e0f app_s_key=101112131415161718191a1b1c1d1e1f";
const JOIN: &str = "join join_eui=010000d07ed5b370 dev_eui=0907060504030201 key=202122232425262728292a2b2c2d2e2f";
/// Counters that one power cut may skip: a block and its margin, and what the sketch was refused.
const SKIPPED_MAX: u64 = 64 + 8 + 8;
/// Places in the ring of records.
const PLACES: u64 = 64;
/// A record's bytes: the power is cut before each of them.
const RECORD_BYTES: i64 = 14;
const CONFIRM_EVERY: usize = 16;
const BOOTS: i64 = 300;

/// What is known of the mote over all its lives.
#[derive(Default)]
struct Ledger {
    /// The next counter that was surely never used.
    next: u64,
    uplinks: u64,
    cuts: u64,
    /// Writes of each byte of EEPROM.
    wear: BTreeMap<u64, u64>,
}

pub fn run(sketch: &str, program: &Path, directory: &Path) -> Result<(), String> {
    let eeprom = directory.join(format!("{sketch}.eeprom"));
    // Left by an earlier run.
    let _absent = fs::remove_file(&eeprom);
    let is_abp = sketch == "antirio-abp";
    let mut ledger = Ledger::default();
    for boot in 0..BOOTS {
        // Every byte of the first records, then of those after a growing number of uplinks.
        let writes = if boot % 4 == 3 { -1 } else { boot % (3 * RECORD_BYTES) };
        let turns = 3 * (1 + boot * 7 % 400);
        let output = Command::new(program).arg(&eeprom).args([turns.to_string(), writes.to_string()]).output();
        let output = output.map_err(|error| format!("{}: {error}", program.display()))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let failed = |why: String| format!("{sketch}, boot {boot} (turns {turns}, writes {writes}): {why}");
        if !output.status.success() {
            return Err(failed(format!("{}: {}{text}", output.status, String::from_utf8_lossy(&output.stderr))));
        }
        if !is_abp {
            // A join begins a session: its counters begin at 0.
            ledger.next = 0;
        }
        ledger.live(&text, if is_abp { SESSION } else { JOIN }).map_err(failed)?;
    }
    ledger.check_wear(is_abp)?;
    let wear = ledger.wear.values().max().copied().unwrap_or(0);
    println!(
        "{sketch}: {BOOTS} boots, {} power cuts within a write, {} uplinks, no counter twice, at most {wear} writes of an EEPROM byte",
        ledger.cuts, ledger.uplinks
    );
    Ok(())
}

impl Ledger {
    /// One run of the program.
    fn live(&mut self, text: &str, activation: &str) -> Result<(), String> {
        let mut is_activated = false;
        let (mut sent, mut last_s, mut interval_s) = (0, None, 60);
        for line in text.lines() {
            let fields: BTreeMap<&str, &str> = line.split(' ').filter_map(|word| word.split_once('=')).collect();
            let number = |name: &str| fields.get(name).and_then(|value| value.parse::<u64>().ok());
            match line.split(' ').next() {
                Some("session" | "join") => {
                    is_activated = line == activation;
                    check(is_activated, || format!("{line}, expected {activation}"))?;
                }
                Some("eeprom") => {
                    let address = line.split(' ').nth(1).and_then(|word| word.parse().ok()).ok_or(line)?;
                    *self.wear.entry(address).or_default() += 1;
                }
                Some("power") => self.cuts += 1,
                Some("uplink") => {
                    sent += 1;
                    let (Some(f_cnt), Some(at_s)) = (number("f_cnt"), number("t")) else { return Err(line.to_owned()) };
                    let skipped_max = if sent == 1 { SKIPPED_MAX } else { 1 };
                    check(is_activated, || "an uplink without a session".to_owned())?;
                    check((self.next..=self.next + skipped_max).contains(&f_cnt), || {
                        format!("counter {f_cnt} where {} was next", self.next)
                    })?;
                    check(fields.get("payload") == Some(&PAYLOAD) && number("port") == Some(1), || line.to_owned())?;
                    check(fields.get("channels") == Some(&"00ff"), || format!("not the eight channels: {line}"))?;
                    check(last_s.is_none_or(|last| at_s >= last + interval_s), || format!("too early: {line}"))?;
                    // The downlink that comes with the fifth transmission asks for 45 s; 1 s, asked for later, is out of range.
                    (last_s, interval_s) = (Some(at_s), if sent >= 5 { 45 } else { 60 });
                    (self.next, self.uplinks) = (f_cnt + 1, self.uplinks + 1);
                }
                _ => {}
            }
        }
        let confirmed = text.lines().filter(|line| line.contains(" confirmed=1 ")).count();
        check(confirmed == sent / CONFIRM_EVERY, || format!("{confirmed} of {sent} are confirmed"))
    }

    /// Records go around: no byte is written more often than the ring turns.
    fn check_wear(&self, is_abp: bool) -> Result<(), String> {
        let bytes: u64 = self.wear.values().sum();
        if !is_abp {
            return check(bytes == 0, || "a mote that joins keeps no counters".to_owned());
        }
        let records = BOOTS.unsigned_abs() + self.uplinks / PLACES + 1;
        let turns = records.div_ceil(PLACES) + 1;
        check(self.wear.values().all(|writes| *writes <= turns), || {
            format!("a byte was written {:?} times, the ring turned {turns} times", self.wear.values().max())
        })
    }
}

fn check(holds: bool, why: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(why()) }
}
