// The device, in the very text of the configuration (docs/arduino.md). Every mote has keys of its own: replace these.

#pragma once

static const char DEV_ADDR[] PROGMEM = "26011bda";
static const char NWK_S_KEY[] PROGMEM = "000102030405060708090a0b0c0d0e0f";
static const char APP_S_KEY[] PROGMEM = "101112131415161718191a1b1c1d1e1f";
