-- Replaces the value of KEYS[1] if it is as expected. ARGV[1] says what is expected: "nothing" (no value), "stamped" (a
-- value that begins with ARGV[2]) or "raw" (the value ARGV[2]). ARGV[3] is the new value, or "" to remove it. ARGV[4] is the
-- TTL in milliseconds. Returns 1 if that was done, and otherwise the value that is there.
local found = redis.pcall('GET', KEYS[1])
if type(found) == 'table' then
    -- A list, a set or the like is another program's: the key counts as vacant.
    if not string.find(found.err, 'WRONGTYPE', 1, true) then return found end
    found = false
end
local as_expected
if ARGV[1] == 'nothing' then
    as_expected = not found
elseif ARGV[1] == 'stamped' then
    as_expected = found and string.sub(found, 1, #ARGV[2]) == ARGV[2]
else
    as_expected = found == ARGV[2]
end
if not as_expected then return found end
if ARGV[3] == '' then
    redis.call('DEL', KEYS[1])
else
    redis.call('SET', KEYS[1], ARGV[3], 'PX', ARGV[4])
end
return 1
