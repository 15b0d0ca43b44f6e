/* What pbs_ifl.h says of its structures: name, size, then each member's place. */
#include <pbs_ifl.h>
#include <stddef.h>
#include <stdio.h>

#define AT(type, member) printf(" %s=%zu", #member, offsetof(struct type, member))

int main(void)
{
    printf("attrl %zu", sizeof(struct attrl));
    AT(attrl, next), AT(attrl, name), AT(attrl, resource), AT(attrl, value), AT(attrl, op);
    printf("\nattropl %zu", sizeof(struct attropl));
    AT(attropl, next), AT(attropl, name), AT(attropl, resource), AT(attropl, value);
    AT(attropl, op);
    printf("\nbatch_status %zu", sizeof(struct batch_status));
    AT(batch_status, next), AT(batch_status, name), AT(batch_status, attribs);
    AT(batch_status, text);
    printf("\n");
    return 0;
}
