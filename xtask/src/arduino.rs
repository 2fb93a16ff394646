//! The Arduino sketches: compiled and linked for an Uno against the documented interface of the LMIC library and Debian's Arduino core, and
//! run on this machine against a stand-in for the library, through power cuts at every byte that they write to EEPROM.

mod judge;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::build;
use crate::packages;

const CORE: &str = "/usr/share/arduino/hardware/arduino/avr";
const SKETCHES: [&str; 2] = ["antirio-abp", "antirio-otaa"];

/// Flash of an Uno less its boot loader, and RAM, in bytes.
const FLASH_BYTES: u32 = 32_256;
const RAM_BYTES: u32 = 2_048;
/// What the library takes of them: its example `ttn-otaa` took 23,884 and 1,877 with frames of 255 bytes (issue 597 of its repository),
/// 1,495 with the frames of 64 bytes that docs/arduino.md asks for.
const LMIC_FLASH_BYTES: u32 = 24_000;
const LMIC_RAM_BYTES: u32 = 1_500;

const UNO: [&str; 7] = [
    "-mmcu=atmega328p",
    "-DF_CPU=16000000L",
    "-DARDUINO=10819",
    "-DARDUINO_AVR_UNO",
    "-DARDUINO_ARCH_AVR",
    "-Os",
    "-ffunction-sections",
];

/// Everything that this machine can check; what it lacks is said, or is an error if it is required.
pub fn run(is_required: bool) -> Result<(), String> {
    println!("== the Arduino sketches ==");
    same_text("mote.h")?;
    let directory = build::target_directory().join("arduino");
    fs::create_dir_all(&directory).map_err(|error| format!("{}: {error}", directory.display()))?;
    if packages::has("g++") {
        for sketch in SKETCHES {
            let program = compile_for_host(sketch, &directory)?;
            judge::run(sketch, &program, &directory)?;
        }
    } else {
        lacking("g++", is_required)?;
    }
    if packages::has("avr-g++") && Path::new(CORE).is_dir() {
        let core = compile_core(&directory)?;
        SKETCHES.into_iter().try_for_each(|sketch| compile_for_uno(sketch, &core, &directory))
    } else {
        lacking("gcc-avr, avr-libc, arduino-core-avr", is_required)
    }
}

fn lacking(what: &str, is_required: bool) -> Result<(), String> {
    if is_required {
        return Err(format!("the Arduino sketches need {what}"));
    }
    println!("SKIPPED a part of the Arduino sketches: no {what}; `cargo xtask test --install` installs it");
    Ok(())
}

/// The Arduino IDE compiles one folder: what both sketches share lies in both.
fn same_text(name: &str) -> Result<(), String> {
    let read = |sketch: &str| {
        let path = Path::new("arduino").join(sketch).join(name);
        fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))
    };
    if read(SKETCHES[0])? == read(SKETCHES[1])? { Ok(()) } else { Err(format!("arduino: the two files {name} differ")) }
}

fn sketch_file(sketch: &str) -> String {
    format!("arduino/{sketch}/{sketch}.ino")
}

fn compile_for_host(sketch: &str, directory: &Path) -> Result<PathBuf, String> {
    let program = directory.join(sketch);
    let mut compiler = Command::new("g++");
    compiler.args(["-std=gnu++11", "-O1", "-Wall", "-Wextra", "-Werror", "-fsanitize=undefined", "-fno-sanitize-recover=all"]);
    compiler.args(["-DON_HOST", "-Iarduino/test/host", "-Iarduino/test/lmic", "-include", "Arduino.h", "-x", "c++"]);
    compiler.args([&sketch_file(sketch), "arduino/test/lmic/lmic.cpp", "arduino/test/host/main.cpp", "-o"]).arg(&program);
    build::run(&mut compiler)?;
    Ok(program)
}

/// C++ for an Uno, as the IDE compiles it.
fn uno_compiler() -> Command {
    let mut compiler = Command::new("avr-g++");
    compiler.args(UNO).args(["-fdata-sections", "-std=gnu++11", "-fno-exceptions", "-fno-threadsafe-statics"]);
    for include in ["cores/arduino", "variants/standard", "libraries/SPI/src", "libraries/EEPROM/src"] {
        compiler.arg(format!("-I{CORE}/{include}"));
    }
    compiler.arg("-Iarduino/test/lmic");
    compiler
}

/// The objects of the Arduino core and of the stand-in for the library.
fn compile_core(directory: &Path) -> Result<Vec<PathBuf>, String> {
    let sources = format!("{CORE}/cores/arduino");
    let mut objects = Vec::new();
    let mut entries: Vec<_> = fs::read_dir(&sources).map_err(|error| format!("{sources}: {error}"))?.flatten().collect();
    entries.sort_by_key(fs::DirEntry::file_name);
    for source in entries.into_iter().map(|entry| entry.path()) {
        let name = source.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let language = match source.extension().and_then(|extension| extension.to_str()) {
            // Debian's compiler lacks a constant that this file wants; the sketches use no strings.
            Some("cpp") if name != "WString.cpp" => "c++",
            Some("c") => "c",
            _ => continue,
        };
        let object = directory.join(format!("core-{name}.o"));
        let mut compiler = if language == "c" { Command::new("avr-gcc") } else { uno_compiler() };
        if language == "c" {
            compiler.args(UNO).args(["-std=gnu11", &format!("-I{sources}"), &format!("-I{CORE}/variants/standard")]);
        }
        build::run(compiler.args(["-w", "-c"]).arg(&source).arg("-o").arg(&object))?;
        objects.push(object);
    }
    let stand_in = directory.join("lmic.o");
    build::run(uno_compiler().args(["-Wall", "-Wextra", "-Werror", "-c", "arduino/test/lmic/lmic.cpp", "-o"]).arg(&stand_in))?;
    objects.push(stand_in);
    Ok(objects)
}

fn compile_for_uno(sketch: &str, core: &[PathBuf], directory: &Path) -> Result<(), String> {
    let object = directory.join(format!("{sketch}.o"));
    let mut compiler = uno_compiler();
    compiler.args(["-Wall", "-Wextra", "-Werror", "-include", "Arduino.h", "-x", "c++", "-c", &sketch_file(sketch), "-o"]);
    build::run(compiler.arg(&object))?;
    let program = directory.join(format!("{sketch}.elf"));
    let mut linker = Command::new("avr-g++");
    linker.args(UNO).arg("-Wl,--gc-sections").arg(&object).args(core).arg("-lm").arg("-o").arg(&program);
    build::run(&mut linker)?;
    let (own, all) = (size(&object)?, size(&program)?);
    println!(
        "{sketch}: {} bytes of flash and {} of RAM of its own, {} and {} with the Arduino core and without LMIC",
        own.flash, own.ram, all.flash, all.ram
    );
    if own.flash + LMIC_FLASH_BYTES > FLASH_BYTES || own.ram + LMIC_RAM_BYTES > RAM_BYTES {
        return Err(format!("{sketch} leaves no room for LMIC on an Uno"));
    }
    Ok(())
}

struct Size {
    flash: u32,
    ram: u32,
}

/// As `avr-size` says it: text, data and bss in bytes.
fn size(object: &Path) -> Result<Size, String> {
    let output = Command::new("avr-size").arg(object).output().map_err(|error| format!("avr-size: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let numbers: Vec<u32> =
        text.lines().nth(1).into_iter().flat_map(str::split_whitespace).map_while(|word| word.parse().ok()).collect();
    match numbers.as_slice() {
        [text, data, bss, ..] => Ok(Size { flash: text + data, ram: data + bss }),
        _ => Err(format!("avr-size said: {text}")),
    }
}
