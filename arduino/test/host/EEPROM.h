// The Uno's EEPROM as a file. The power can be cut before any byte is written. Every written byte is counted: the test wants to know the wear.

#pragma once

#include <stdint.h>

struct HostEeprom {
  static const int BYTES = 1024;

  void begin(const char *path, long writes_left);
  uint8_t read(int address) const;
  void update(int address, uint8_t value);

  // As the library: byte by byte, and only bytes that differ are written.
  template <typename T> T &get(int address, T &value) const {
    uint8_t *bytes = (uint8_t *)&value;
    for (unsigned i = 0; i < sizeof(T); i++) {
      bytes[i] = read(address + (int)i);
    }
    return value;
  }

  template <typename T> const T &put(int address, const T &value) {
    const uint8_t *bytes = (const uint8_t *)&value;
    for (unsigned i = 0; i < sizeof(T); i++) {
      update(address + (int)i, bytes[i]);
    }
    return value;
  }
};

extern HostEeprom EEPROM;
