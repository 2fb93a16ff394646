// Frame counters that survive a power cut, with wear in mind.
//
// Uplink counters are reserved ahead, BLOCK at a time: a record in EEPROM says below which counter everything may have been used. After a
// power cut the mote goes on there, so no counter is ever used twice, and at most BLOCK + MARGIN are skipped (a network server follows a gap
// of 16,384). The downlink counter is the one heard last when the record was written, never ahead: a mote that expects more than its network
// counts is deaf. What was heard since may be replayed to it once after a power cut.
//
// Records go around in a ring over the whole EEPROM: 64 places of 16 bytes, each good for 100,000 writes. At one uplink a minute a place is
// written 128 times a year.

#pragma once

#include <EEPROM.h>

class FrameCounters {
public:
  static const uint8_t BLOCK = 64;
  // LMIC sends frames of its own (polls, answers): counters move without a call to `keep`.
  static const uint8_t MARGIN = 8;

  // Finds the newest record of this session. `session` tells keys apart: new keys, new counters.
  void begin(uint32_t session) {
    record_ = Record{session, 0, 0, 0};
    place_ = PLACES - 1;
    for (uint8_t place = 0; place < PLACES; place++) {
      Record found;
      EEPROM.get(address(place), found);
      if (found.session == session && found.check == check(found) && found.up > record_.up) {
        record_ = found;
        place_ = place;
      }
    }
  }

  // The first uplink counter that was surely not used yet.
  uint32_t up() const { return record_.up; }
  // The downlink counter heard last, as far as it was written.
  uint32_t down() const { return record_.down; }

  // Makes sure that `up` and the MARGIN behind it are reserved. Takes up to 55 ms if it writes: not while a receive window is due.
  void keep(uint32_t up, uint32_t down) {
    if (up + MARGIN <= record_.up) {
      return;
    }
    record_.up = up + BLOCK + MARGIN;
    record_.down = down;
    record_.check = check(record_);
    place_ = (place_ + 1) % PLACES;
    EEPROM.put(address(place_), record_);
  }

private:
  // All fields are little endian and packed by nature: 14 bytes.
  struct __attribute__((packed)) Record {
    uint32_t session;
    uint32_t up;
    uint32_t down;
    uint16_t check;
  };

  static const uint8_t PLACES = 64;

  static int address(uint8_t place) { return (int)place * 16; }

  // CRC-16 (CCITT): a record cut off by a power cut is no record.
  static uint16_t check(const Record &record) {
    const uint8_t *bytes = (const uint8_t *)&record;
    uint16_t crc = 0xffff;
    for (uint8_t i = 0; i < sizeof(Record) - sizeof(record.check); i++) {
      crc ^= (uint16_t)bytes[i] << 8;
      for (uint8_t bit = 0; bit < 8; bit++) {
        crc = crc & 0x8000 ? (crc << 1) ^ 0x1021 : crc << 1;
      }
    }
    return crc;
  }

  Record record_;
  uint8_t place_;
};
