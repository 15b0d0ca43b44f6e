-- lua5.1 lua_calls.lua FILTER CALLS ROUNDS TABLE...
-- Times submissions with each table in turn; prints lines "TABLE-NUMBER CASE NANOSECONDS".
-- What slurmctld lends to job_submit.lua is stood in for by `slurm` and by plain tables.
local filter, calls, rounds = arg[1], tonumber(arg[2]), tonumber(arg[3])
slurm = { SUCCESS = 0, ERROR = -1, ESLURM_ACCESS_DENIED = 2002 }
function slurm.log_user() end
slurm.log_error, slurm.log_info = slurm.log_user, slurm.log_user

local cases = {
    { "no container", nil, slurm.SUCCESS },
    { "a known name", "env-3", slurm.SUCCESS },
    { "a mistyped name", "emv-3", slurm.ERROR },
    { "an unknown name", "something-else", slurm.ERROR },
}

local function submission(name)
    local carried = name and { [0] = "HPCWRAP_CONTAINER=" .. name } or {}
    return {
        user_id = 2001, user_name = "alice", partition = "main", script = "#!/bin/sh",
        container = name, environment = {}, spank_job_env = carried,
        spank_job_env_size = name and 1 or 0,
    }
end

local function nanoseconds(hpcwrap, name, expected)
    local jobs = {}
    for call = 1, calls do jobs[call] = submission(name) end
    local partitions = { main = { flag_default = 1 } }
    collectgarbage()
    local start = os.clock()
    for call = 1, calls do
        assert(hpcwrap.submit(jobs[call], partitions, 2001) == expected)
    end
    return (os.clock() - start) / calls * 1e9
end

local filters = {}
for number = 4, #arg do filters[number - 3] = dofile(filter)(arg[number]) end
for round = 0, rounds do
    for number, hpcwrap in ipairs(filters) do
        for _, case in ipairs(cases) do
            local spent = nanoseconds(hpcwrap, case[2], case[3])
            if round > 0 then print(number .. "\t" .. case[1] .. "\t" .. spent) end
        end
    end
end
