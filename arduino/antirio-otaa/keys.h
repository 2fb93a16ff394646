// The device, in the very text of the configuration (docs/arduino.md). Every mote has a DevEUI and a key of its own: replace these.

#pragma once

static const char DEV_EUI[] PROGMEM = "0102030405060709";
static const char JOIN_EUI[] PROGMEM = "70b3d57ed0000001";
static const char APP_KEY[] PROGMEM = "202122232425262728292a2b2c2d2e2f";
