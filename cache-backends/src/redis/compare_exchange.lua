-- KEYS[1]: where. ARGV[1], ARGV[2]: what must be there: "nothing"; something that begins "stamped", or is "raw", as ARGV[2].
-- ARGV[3]: what comes there, or "" for nothing. ARGV[4]: for how many milliseconds.
-- Answers 1 when done, otherwise what is there.
local found = redis.pcall('GET', KEYS[1])
if type(found) == 'table' then
    -- A list, a set or the like is none of ours: it counts as nothing there.
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
