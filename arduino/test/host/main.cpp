// Runs a sketch from power on to power cut: `SKETCH EEPROM_FILE TURNS WRITES`. The power is cut after so many turns of `loop`, or before the
// EEPROM byte after so many written ones (-1: never), whichever is first. Everything that would be sent is printed; the judge reads that.

#include <Arduino.h>
#include <EEPROM.h>
#include <stdlib.h>

void setup();
void loop();

HostSerial Serial;
HostEeprom EEPROM;

static FILE *file;
static uint8_t cells[HostEeprom::BYTES];
static long writes_left;

void HostEeprom::begin(const char *path, long writes) {
  memset(cells, 0xff, sizeof cells);
  writes_left = writes;
  file = fopen(path, "r+b");
  if (file == NULL) {
    file = fopen(path, "w+b");
  }
  if (file == NULL || (fread(cells, 1, sizeof cells, file) != sizeof cells && fwrite(cells, 1, sizeof cells, file) == 0)) {
    perror(path);
    exit(2);
  }
}

static void check(int address) {
  if (address < 0 || address >= HostEeprom::BYTES) {
    printf("MISUSE EEPROM address %d\n", address);
    exit(3);
  }
}

uint8_t HostEeprom::read(int address) const {
  check(address);
  return cells[address];
}

void HostEeprom::update(int address, uint8_t value) {
  check(address);
  if (cells[address] == value) {
    return;
  }
  if (writes_left-- == 0) {
    printf("power cut while writing\n");
    exit(0);
  }
  printf("eeprom %d\n", address);
  cells[address] = value;
  fseek(file, address, SEEK_SET);
  fwrite(&value, 1, 1, file);
  fflush(file);
}

int main(int count, char **arguments) {
  if (count != 4) {
    fprintf(stderr, "usage: %s EEPROM_FILE TURNS WRITES\n", arguments[0]);
    return 2;
  }
  EEPROM.begin(arguments[1], atol(arguments[3]));
  setup();
  for (long turns = atol(arguments[2]); turns > 0; turns--) {
    loop();
  }
  return 0;
}
