// Unit tests, for `node --test`.
import assert from "node:assert";
import { test } from "node:test";

test("a total is a whole number of cents", () => {
  assert.ok(Number.isInteger(Math.floor((250 * 10 * 9) / 10)));
});
