// As much of the Arduino core as the sketches use, on the host. There is no `delay`: a sketch that calls it does not compile.

#pragma once

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#define PROGMEM
#define F(text) (text)
#define pgm_read_byte(address) (*(const uint8_t *)(address))

enum { LOW = 0, HIGH = 1, INPUT = 0, OUTPUT = 1, INPUT_PULLUP = 2, INTERNAL = 3, A0 = 14, A1, A2, A3, A4, A5 };

inline void pinMode(uint8_t, uint8_t) {}
inline void analogReference(uint8_t) {}
// 715 mV: 21.5 degrees of a TMP36.
inline int analogRead(uint8_t) { return 666; }
// The contact is closed.
inline int digitalRead(uint8_t) { return LOW; }

struct HostSerial {
  void begin(unsigned long) {}
  void print(unsigned long number) { printf("serial %lu", number); }
  void println(const char *text) { printf("%s\n", text); }
};

extern HostSerial Serial;
