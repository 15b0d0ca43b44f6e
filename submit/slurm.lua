--[[ hpcwrap's part of a site's job_submit.lua: may this job have the container that it asks for?

    local hpcwrap = dofile("PREFIX/share/hpcwrap/submit/slurm.lua")("TABLE")
    hpcwrap.submit(job_desc, part_list, submit_uid)            from slurm_job_submit
    hpcwrap.modify(job_desc, job_rec, part_list, modify_uid)   from slurm_job_modify

Both return a code of Slurm's; anything but slurm.SUCCESS is for the caller to return at once.

slurmctld calls this with locks held, one submission after the other: so there is no file, process
or network here, and nothing that grows with the number of environments.  All knowledge is in the
table that `hpcwrap setup slurm --table` writes, read once when slurmctld loads job_submit.lua.

Slurm before 26.05 accepts a job when Lua fails (job_submit_lua.c): every entry is behind pcall, and
whatever goes wrong there rejects the job.  Written for Lua 5.1 to 5.4. ]]

local CONTROL = "HPCWRAP_CONTAINER" -- what the SPANK plugin of the client carries to the prolog
local MARK = "SLURM_SPANK_" .. CONTROL -- in a step's environment: its job asked for a container
local TOKEN = "hpcwrap=" -- a word of the job's comment: how the prolog hears of it without SPANK
local NONE = "none"
local VERSION = 1
local LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789-._"

-- Raised by refuse(): what the user did, as against an error of ours.
local Refusal = {}

local function refuse(code, ...)
    error(setmetatable({ code = code, sentence = string.format(...) }, Refusal))
end

-- ---- the table ----

local function read_table(path)
    local chunk, reason = loadfile(path, "t", {})
    if not chunk then
        return nil, reason
    end
    if setfenv then
        setfenv(chunk, {}) -- 5.1, where loadfile takes the path only
    end
    local ok, found = pcall(chunk)
    if not ok or type(found) ~= "table" or found.version ~= VERSION then
        return nil, path .. ": " .. (ok and "not a table of this version" or tostring(found))
    end
    return found
end

-- ---- what the job says ----

-- The name in the SPANK job environment, a 0-based list of NAME=VALUE.
local function carried_name(job)
    local variables = job.spank_job_env
    local prefix = CONTROL .. "="
    for index = 0, (job.spank_job_env_size or 0) - 1 do
        local variable = variables and variables[index]
        if variable and variable:sub(1, #prefix) == prefix then
            return variable:sub(#prefix + 1)
        end
    end
    return nil
end

-- The last hpcwrap=NAME of a comment, as hpcwrap/schedulers/slurm.py reads it.
local function token_name(comment)
    local found
    for word in (comment or ""):gmatch("%S+") do
        if word:sub(1, #TOKEN) == TOKEN and #word > #TOKEN then
            found = word:sub(#TOKEN + 1)
        end
    end
    return found
end

local function with_word(comment, value)
    local word = TOKEN .. value
    return (comment and comment ~= "") and (comment .. " " .. word) or word
end

-- All ways of asking must agree: the prolog, the job's record and this check go by different ones.
local function agree(first, second)
    if first and second and first ~= second then
        refuse(slurm.ERROR, "cannot tell which container is meant: %s or %s", first, second)
    end
    return first or second
end

-- What --container says: a name, or nil and true for the path of an OCI bundle, Slurm's business.
local function option_name(job)
    local option = job.container
    if option and option:find("/", 1, true) then
        return nil, true
    end
    return option, false
end

-- ---- defaults ----

local function partition_names(job, partitions)
    if not job.partition then
        for name, partition in pairs(partitions or {}) do
            if partition.flag_default == 1 or partition.flag_default == true then
                return { name }
            end
        end
        return {}
    end
    local names = {}
    for name in job.partition:gmatch("[^,]+") do
        names[#names + 1] = name
    end
    return names
end

-- The default of the job's partitions; a job that may run in several must find the same in all.
local function partition_default(known, job, partitions)
    if not next(known.defaults.partition) then
        return nil
    end
    local names = partition_names(job, partitions)
    local default = known.defaults.partition[names[1] or ""]
    for _, name in ipairs(names) do
        if known.defaults.partition[name] ~= default then
            refuse(
                slurm.ERROR,
                "cannot choose a container: the partitions %s and %s have different defaults "
                    .. "(name one, or --container=none)",
                names[1],
                name
            )
        end
    end
    return default
end

local function account_default(known, job)
    if not next(known.defaults.account) then
        return nil
    end
    return known.defaults.account[job.account or job.default_account or ""]
end

-- ---- may this user have it? ----

-- Try all words that one typing error away from `name`: as many as its letters, not as the table.
local function nearest(environments, name)
    local word = name:lower():gsub("_", "-"):sub(1, 64)
    if environments[word] then
        return word
    end
    for at = 1, #word + 1 do
        local head, tail = word:sub(1, at - 1), word:sub(at)
        local tries = {
            head .. tail:sub(2),
            head .. tail:sub(2, 2) .. tail:sub(1, 1) .. tail:sub(3),
        }
        for letter in LETTERS:gmatch(".") do
            tries[#tries + 1] = head .. letter .. tail
            tries[#tries + 1] = head .. letter .. tail:sub(2)
        end
        for _, try in ipairs(tries) do
            if environments[try] then
                return try
            end
        end
    end
    return nil
end

local function refuse_unknown(known, name)
    local near = nearest(known.environments, name)
    local hint = near and ("did you mean " .. near .. "?") or known.hint
    refuse(slurm.ERROR, "there is no environment '%s' (%s)", name:sub(1, 64), hint)
end

local function is_allowed(known, environment, uid)
    if not environment.users and not environment.groups then
        return true
    end
    if environment.users and environment.users[uid] then
        return true
    end
    for _, group in ipairs(environment.groups or {}) do
        local members = known.members[group]
        -- Members that could not be listed: the prolog asks again, and can.
        if not members or members[uid] then
            return true
        end
    end
    return false
end

local function refuse_forbidden(name, environment, user)
    local groups = environment.groups and table.concat(environment.groups, " or ")
    refuse(
        slurm.ESLURM_ACCESS_DENIED,
        "%s may not use the environment %s: %s (ask the administrators for access)",
        user or "you",
        name,
        groups and ("it is for members of the group " .. groups) or "it is for named users"
    )
end

local function check_name(known, name, job)
    if name == NONE then
        if not known.allow_none then
            refuse(
                slurm.ERROR,
                "cannot run without a container: this site does not allow --container=none"
            )
        end
        return
    end
    local environment = known.environments[name]
    if not environment then
        refuse_unknown(known, name)
    elseif environment.broken then
        refuse(slurm.ERROR, "cannot use the environment %s: it is broken, or a default that does "
            .. "not exist (tell the administrators; `hpcwrap config --check` says more)", name)
    elseif not is_allowed(known, environment, job.user_id) then
        refuse_forbidden(name, environment, job.user_name)
    end
end

-- ---- what the job's record and the prolog get to know ----

local function note(known, name, job)
    -- With an oci.conf slurmstepd takes the name for the path of a bundle, and the job is held.
    job.container = known.clear_container and "" or name
    if name == NONE then
        return
    end
    local digest = known.environments[name].digest
    job.admin_comment = with_word(job.admin_comment, digest and (name .. "@" .. digest) or name)
end

-- The job came without SPANK's word, from slurmrestd, scrontab or a default.  The mark makes its
-- batch script fail, rather than run on the host, where no prolog has left a container.
local function carry(name, job)
    if token_name(job.comment) ~= name then
        job.comment = with_word(job.comment, name)
    end
    if job.script and name ~= NONE then
        job.environment[MARK] = name
    end
end

local function submit(known, job, partitions)
    local carried = carried_name(job)
    local option, bundle = option_name(job)
    if bundle and not known.clear_container then
        -- There is no oci.conf: Slurm would ignore the path, and the job run on the host.
        refuse(
            slurm.ERROR,
            "cannot use --container=%s: it is a path or an image, and not the name of an environment "
                .. "(see `hpcwrap env list`)",
            job.container
        )
    end
    local name = agree(agree(carried, option), token_name(job.comment))
    if not name then
        name = partition_default(known, job, partitions) or account_default(known, job)
        if not name or name == NONE then
            return
        end
        name = bundle and NONE or name
    end
    check_name(known, name, job)
    if not bundle then
        note(known, name, job)
    end
    if not carried then
        carry(name, job)
    end
end

-- The container was settled at submission; a comment may change around its word.
local function modify(job, record)
    local before = token_name(record.comment)
    if job.comment and job.comment ~= record.comment then
        local after = token_name(job.comment)
        if before and not after then
            job.comment = with_word(job.comment, before)
        elseif after ~= before then
            refuse(
                slurm.ESLURM_ACCESS_DENIED,
                "cannot change the container of a job: %s in its comment",
                TOKEN .. after
            )
        end
    end
    if job.container and job.container ~= record.container then
        refuse(slurm.ESLURM_ACCESS_DENIED, "cannot change the container of a job")
    end
end

-- ---- the edge ----

local function guard(tell, action, ...)
    local ok, problem = pcall(action, ...)
    if ok then
        return slurm.SUCCESS
    end
    if getmetatable(problem) == Refusal then
        tell("hpcwrap: %s", problem.sentence)
        return problem.code or slurm.ERROR
    end
    slurm.log_error("hpcwrap: %s", tostring(problem))
    tell("hpcwrap: %s", "cannot check the job's container: tell the administrators "
        .. "(slurmctld's log has the reason)")
    return slurm.ERROR
end

return function(path)
    local known, reason = read_table(path)
    local M = {}

    function M.submit(job, partitions, _)
        return guard(slurm.log_user, function()
            if not known then
                error(tostring(reason) .. " (run: hpcwrap setup slurm --table)", 0)
            end
            submit(known, job, partitions)
        end)
    end

    -- Slurm does not return log_user's text from a modification, it only complains about it.
    function M.modify(job, record, _, _)
        return guard(slurm.log_info, modify, job, record)
    end

    return M
end
