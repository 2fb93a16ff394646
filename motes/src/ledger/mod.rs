//! The records of motes, radio and gateways: append-only files of JSON lines, flushed as they are written.
//!
//! All times are wall-clock microseconds since 1970 of the one machine that runs motes, gateways and nodes.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use serde::Serialize;
use serde::de::DeserializeOwned;

pub use self::records::{
    AcceptOnAir, Attempt, AttemptEnd, Downlink, DownlinkDropped, DownlinkReceived, DropReason, Frame, GatewayRecord, JoinAttempt,
    JoinFrame, Joined, MoteRecord, RadioRecord, Start, UplinkEnd,
};

mod records;

/// File of [`MoteRecord`]s.
pub const MOTES_FILE: &str = "motes.ndjson";
/// File of [`RadioRecord`]s.
pub const RADIO_FILE: &str = "radio.ndjson";
/// File of [`GatewayRecord`]s.
pub const GATEWAYS_FILE: &str = "gateways.ndjson";
/// Lines that may wait for the disk before the writers of records wait too.
const LINES_WAITING_MAX: usize = 65_536;
/// Longest line that is read back.
const LINE_BYTES_MAX: usize = 16_384;

/// Why a ledger could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file system refused.
    #[error("ledger {path}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A line is no record.
    #[error("ledger {path}, line {line}")]
    Line {
        /// Which file.
        path: PathBuf,
        /// Line number from 1.
        line: usize,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// A line is longer than any record.
    #[error("ledger {path}, line {line} has more than {LINE_BYTES_MAX} bytes")]
    LineTooLong {
        /// Which file.
        path: PathBuf,
        /// Line number from 1.
        line: usize,
    },
    /// The writer ended early; its error was reported when it happened.
    #[error("the ledger writer is gone")]
    WriterGone,
}

#[derive(Debug)]
enum Line {
    Motes(Vec<u8>),
    Radio(Vec<u8>),
    Gateways(Vec<u8>),
}

/// Sends records to the writer thread, or keeps them; cheap to clone.
#[derive(Clone, Debug)]
pub struct Ledger(Destination);

#[derive(Clone, Debug)]
enum Destination {
    Files(SyncSender<Line>),
    Memory(Arc<Mutex<Ledgers>>),
}

impl Ledger {
    /// A ledger in memory, for simulation; [`Self::ledgers`] reads it.
    #[must_use]
    pub fn in_memory() -> Self {
        Self(Destination::Memory(Arc::default()))
    }

    /// What a ledger in memory has so far.
    #[must_use]
    pub fn ledgers(&self) -> Option<Ledgers> {
        match &self.0 {
            Destination::Files(_) => None,
            Destination::Memory(ledgers) => Some(ledgers.lock().unwrap_or_else(PoisonError::into_inner).clone()),
        }
    }

    /// Writes down what a mote knows. Waits if the disk is 65,536 lines behind; fails only if the writer is gone.
    ///
    /// # Errors
    /// [`Error::WriterGone`].
    pub fn record_mote(&self, record: &MoteRecord) -> Result<(), Error> {
        self.record(record, Line::Motes, |ledgers| &mut ledgers.motes)
    }

    /// Writes down what the radio knows.
    ///
    /// # Errors
    /// [`Error::WriterGone`].
    pub fn record_radio(&self, record: &RadioRecord) -> Result<(), Error> {
        self.record(record, Line::Radio, |ledgers| &mut ledgers.radio)
    }

    /// Writes down what a gateway knows.
    ///
    /// # Errors
    /// [`Error::WriterGone`].
    pub fn record_gateway(&self, record: &GatewayRecord) -> Result<(), Error> {
        self.record(record, Line::Gateways, |ledgers| &mut ledgers.gateways)
    }

    fn record<T: Serialize + Clone>(
        &self,
        record: &T,
        line: fn(Vec<u8>) -> Line,
        list: fn(&mut Ledgers) -> &mut Vec<T>,
    ) -> Result<(), Error> {
        match &self.0 {
            Destination::Files(sender) => sender.send(line(to_line(record))).map_err(|_| Error::WriterGone),
            Destination::Memory(ledgers) => {
                list(&mut ledgers.lock().unwrap_or_else(PoisonError::into_inner)).push(record.clone());
                Ok(())
            }
        }
    }
}

fn to_line(record: &impl Serialize) -> Vec<u8> {
    let mut line = serde_json::to_vec(record).expect("records have only string keys and finite numbers");
    line.push(b'\n');
    line
}

/// The thread that owns the files.
#[derive(Debug)]
pub struct Writer {
    thread: JoinHandle<Result<(), Error>>,
}

impl Writer {
    /// Waits until everything is written. All clones of the [`Ledger`] must be dropped before.
    ///
    /// # Errors
    /// The first error of the file system.
    pub fn finish(self) -> Result<(), Error> {
        self.thread.join().unwrap_or(Err(Error::WriterGone))
    }
}

/// Creates `directory` with empty ledgers and starts their writer.
///
/// # Errors
/// [`Error::Io`] if the directory or a file cannot be made. Existing ledgers are replaced.
pub fn create(directory: &Path) -> Result<(Ledger, Writer), Error> {
    std::fs::create_dir_all(directory).map_err(|source| Error::Io { path: directory.to_owned(), source })?;
    let files = [MOTES_FILE, RADIO_FILE, GATEWAYS_FILE].map(|name| LedgerFile::create(directory.join(name)));
    let [motes, radio, gateways] = files;
    let files = [motes?, radio?, gateways?];
    let (sender, receiver) = sync_channel(LINES_WAITING_MAX);
    let thread = std::thread::spawn(move || write_lines(&receiver, files));
    Ok((Ledger(Destination::Files(sender)), Writer { thread }))
}

#[derive(Debug)]
struct LedgerFile {
    path: PathBuf,
    file: BufWriter<File>,
}

impl LedgerFile {
    fn create(path: PathBuf) -> Result<Self, Error> {
        let file = OpenOptions::new().write(true).create(true).truncate(true).open(&path);
        match file {
            Ok(file) => Ok(Self { path, file: BufWriter::new(file) }),
            Err(source) => Err(Error::Io { path, source }),
        }
    }

    fn check(&self, result: std::io::Result<()>) -> Result<(), Error> {
        result.map_err(|source| Error::Io { path: self.path.clone(), source })
    }
}

/// Writes what waits, then flushes: a killed process loses at most the lines of the last moment.
fn write_lines(receiver: &Receiver<Line>, mut files: [LedgerFile; 3]) -> Result<(), Error> {
    while let Ok(first) = receiver.recv() {
        let mut next = Some(first);
        while let Some(line) = next.take() {
            let (index, bytes) = match line {
                Line::Motes(bytes) => (0, bytes),
                Line::Radio(bytes) => (1, bytes),
                Line::Gateways(bytes) => (2, bytes),
            };
            let result = files[index].file.write_all(&bytes);
            files[index].check(result)?;
            next = receiver.try_recv().ok();
        }
        for file in &mut files {
            let result = file.file.flush();
            file.check(result)?;
        }
    }
    Ok(())
}

/// All that was written down in one run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ledgers {
    /// What the motes know.
    pub motes: Vec<MoteRecord>,
    /// What the radio knows.
    pub radio: Vec<RadioRecord>,
    /// What the gateways know.
    pub gateways: Vec<GatewayRecord>,
}

impl Ledgers {
    /// Reads the ledgers of a run. A last line without end (its writer was killed) is left out.
    ///
    /// # Errors
    /// [`Error`] if a file is missing or a complete line is no record.
    pub fn read(directory: &Path) -> Result<Self, Error> {
        // In this order, so that a run that goes on meanwhile shows no frame without its mote's word for it: that was written before.
        let gateways = read_file(&directory.join(GATEWAYS_FILE))?;
        let radio = read_file(&directory.join(RADIO_FILE))?;
        let motes = read_file(&directory.join(MOTES_FILE))?;
        Ok(Self { motes, radio, gateways })
    }
}

fn read_file<Record: DeserializeOwned>(path: &Path) -> Result<Vec<Record>, Error> {
    let to_error = |source| Error::Io { path: path.to_owned(), source };
    let mut reader = BufReader::new(File::open(path).map_err(to_error)?);
    let mut records = Vec::new();
    let mut line = Vec::new();
    loop {
        line.clear();
        let limit = u64::try_from(LINE_BYTES_MAX).unwrap_or(u64::MAX);
        std::io::Read::take(&mut reader, limit).read_until(b'\n', &mut line).map_err(to_error)?;
        let number = records.len() + 1;
        if line.last() != Some(&b'\n') {
            if line.len() == LINE_BYTES_MAX {
                return Err(Error::LineTooLong { path: path.to_owned(), line: number });
            }
            return Ok(records);
        }
        let record =
            serde_json::from_slice(&line).map_err(|source| Error::Line { path: path.to_owned(), line: number, source })?;
        records.push(record);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::Eui64;

    fn frame(number: u64) -> RadioRecord {
        RadioRecord::Frame(Frame {
            frame: number,
            mote: 1,
            dev_eui: Eui64(2),
            session: 0,
            f_cnt: 3,
            attempt: 1,
            confirmed: false,
            end_us: 1_700_000_000_000_000,
            gateways: vec![Eui64(9)],
        })
    }

    #[test]
    fn what_is_written_is_read() {
        let directory = tempfile::tempdir().expect("a directory");
        let (ledger, writer) = create(directory.path()).expect("a ledger");
        for number in 0..1_000 {
            ledger.record_radio(&frame(number)).expect("a writer");
        }
        let malformed = GatewayRecord::Malformed { gateway: Eui64(1), at_us: 5, reason: "no JSON".to_owned() };
        ledger.record_gateway(&malformed).expect("a writer");
        drop(ledger);
        writer.finish().expect("written");
        let read = Ledgers::read(directory.path()).expect("read");
        assert_eq!(read.radio, (0..1_000).map(frame).collect::<Vec<_>>());
        assert_eq!((read.motes.len(), read.gateways), (0, vec![malformed]));
    }

    #[test]
    fn torn_last_line_is_left_out_and_bad_lines_are_named() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join(RADIO_FILE);
        let mut bytes = to_line(&frame(1));
        bytes.extend_from_slice(b"{\"type\":\"frame\",\"fra");
        std::fs::write(&path, &bytes).expect("written");
        assert_eq!(read_file::<RadioRecord>(&path).expect("read"), [frame(1)]);
        bytes.push(b'\n');
        std::fs::write(&path, &bytes).expect("written");
        assert!(matches!(read_file::<RadioRecord>(&path), Err(Error::Line { line: 2, .. })));
        std::fs::write(&path, vec![b' '; LINE_BYTES_MAX + 1]).expect("written");
        assert!(matches!(read_file::<RadioRecord>(&path), Err(Error::LineTooLong { line: 1, .. })));
        assert!(matches!(Ledgers::read(directory.path()), Err(Error::Io { .. })));
    }
}
